"""Files that appear whole or not at all."""

import pytest

from openmm_starmd.files import replacing


def test_a_block_that_succeeds_replaces_the_file(tmp_path):
    path = tmp_path / "state"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    with replacing(tmp_path / "state") as first, replacing(tmp_path / "state") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "state").read_text() == "first"  # the outer block ends last
