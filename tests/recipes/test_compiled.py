"""Compiled engines lie in a folder that only their user can write to."""

import os
import shutil
import stat
import subprocess
import sys

import compiled
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")
COMMAND = "g++ -shared -fPIC"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openmm-starmd"


def write(path, number):
    path.write_text(f'extern "C" int number() {{ return {number}; }}\n')
    return path


def test_each_version_is_compiled_once(cache, tmp_path, monkeypatch):
    source = write(tmp_path / "engine.cpp", 1)
    assert compiled.library(source, COMMAND).number() == 1
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns
    assert compiled.library(source, COMMAND).number() == 1
    assert made.stat().st_mtime_ns == before
    assert compiled.library(write(source, 2), COMMAND).number() == 2
    monkeypatch.setattr(compiled, "_processor", lambda: b"another")
    compiled.library(source, COMMAND)
    compiled.library(source, f"{COMMAND} -O1")
    assert len(list(cache.iterdir())) == 4


def test_a_source_that_does_not_compile_leaves_nothing(cache, tmp_path):
    (tmp_path / "engine.cpp").write_text("no C++")
    with pytest.raises(subprocess.CalledProcessError):
        compiled.library(tmp_path / "engine.cpp", COMMAND)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("mask", [0, 0o077])
def test_the_folder_is_the_users_alone(cache, mask):
    old = os.umask(mask)
    try:
        assert stat.S_IMODE(compiled.cache_folder().stat().st_mode) == 0o700
    finally:
        os.umask(old)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(cache, mode):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with pytest.raises(RuntimeError, match="chmod 700"):
        compiled.cache_folder()
