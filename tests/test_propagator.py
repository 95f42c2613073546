"""One learned step for B replicas: reproducible, equivariant, resumable."""

from dataclasses import replace

import pytest
import torch

from openmm_starmd.diffusion import tape
from openmm_starmd.diffusion.replay import VARIABLE, Replayed, map_tensors
from openmm_starmd.diffusion.tape import Tape
from openmm_starmd.errors import HistoryError
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.model import StarMDModel
from openmm_starmd.network import attention
from openmm_starmd.network.config import ModelConfig, NetworkConfig, ProcessConfig
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens

SMALL = dict(blocks=2, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
CONFIGS = {
    "peptide": ModelConfig(NetworkConfig(**SMALL, pulls=True), denoising_steps=3),
    "paper": ModelConfig(
        NetworkConfig(**SMALL, parameterization="plain", reference_structure=True),
        ProcessConfig(schedule="paper"),
        context_frames=3,
        denoising_steps=4,
        sampler="euler-maruyama",
    ),
    "reversion": ModelConfig(
        NetworkConfig(**SMALL, reference_structure=True, reversion=True, burial=True, neighbours=3), denoising_steps=3
    ),
    "elastic steps": ModelConfig(
        NetworkConfig(**SMALL, reference_structure=True, reversion=True, burial=True, elastic_steps=True),
        denoising_steps=3,
    ),
    "half precision": ModelConfig(NetworkConfig(**SMALL), denoising_steps=3),
}


@pytest.fixture
def peptide(build_peptide):
    topology, positions = build_peptide("AKLF")
    tokens = ResidueTokens.from_topology(topology)
    return tokens, from_positions(torch.as_tensor(positions, dtype=torch.float32), tokens)


@pytest.fixture(params=CONFIGS)
def setting(request, peptide, monkeypatch):
    if request.param == "half precision":
        monkeypatch.setattr(attention, "HALF_ABOVE", 0)
    return model_of(CONFIGS[request.param]), *peptide


def model_of(config):
    model, generator = StarMDModel.create(config, seed=1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        model.denoiser.step_scales.fill_(0.1)
        if config.network.burial:
            model.denoiser.burial_scales.copy_(0.1 + 0.1 * torch.rand(8, 8, 9, generator=generator))
        if config.network.elastic_steps:
            model.denoiser.elastic_scales.fill_(0.02)
    return model


def propagator_of(model, tokens, **kwargs):
    return Propagator(model, tokens, 100.0, 300.0, **kwargs)


def run(propagator, history, steps, seed=0, first=0):
    """Steps with a generator keyed by (seed, step), as the integrator keys them."""
    out = []
    for k in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * seed + k)
        new = propagator.step(history, generator)
        history = propagator.extend(history, new, generator)
        out.append(new)
    return Conformation.stack(out), history


def batch_of(start, n):
    return start.map(lambda x: x.expand(n, *x.shape))


def equal(a, b):
    return all(
        torch.equal(x, y)
        for x, y in (
            (a.frames.rotations, b.frames.rotations),
            (a.frames.translations, b.frames.translations),
            (a.torsions, b.torsions),
            (a.angles, b.angles),
        )
    )


def test_seed_decides(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    first, _ = run(p, p.start(batch_of(start, 1)), 3)
    again, _ = run(propagator_of(model, tokens), p.start(batch_of(start, 1)), 3)
    other, _ = run(p, p.start(batch_of(start, 1)), 3, seed=1)
    assert equal(first, again) and not equal(first, other)


def test_rotations_stay_rotations_and_the_centroid_stays(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    frames, _ = run(p, p.start(batch_of(start, 1)), 8)
    r = frames.frames.rotations
    torch.testing.assert_close(r @ r.transpose(-1, -2), torch.eye(3).expand_as(r), atol=1e-4, rtol=0)
    centroid = frames.frames.translations.mean(-2)
    torch.testing.assert_close(centroid, start.frames.translations.mean(-2).expand_as(centroid), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cut", [1, 4])
def test_resumed_equals_uninterrupted_bit_for_bit(setting, cut):
    """Cut while the window grows and after frames have left it; the new propagator knows the packed history only."""
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    whole, _ = run(p, p.start(batch_of(start, 1)), 6)
    q = propagator_of(model, tokens)
    _, history = run(q, q.start(batch_of(start, 1)), cut)
    mask = tokens.features.torsion_mask
    restored = History.unpack(history.pack(mask), mask, history.times, history.dropped)
    rest, _ = run(propagator_of(model, tokens), restored, 6 - cut, first=cut)
    assert equal(whole[cut:], rest)


def test_batched_equals_single(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)

    def generators(which):
        return [torch.Generator().manual_seed(k) for k in which]

    together = p.step(p.start(batch_of(start, 3)), generators((0, 1, 2)))
    alone = p.step(p.start(batch_of(start, 1)), generators((1,)))
    torch.testing.assert_close(together.frames.rotations[1:2], alone.frames.rotations, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.frames.translations[1:2], alone.frames.translations, atol=1e-4, rtol=0)


def test_what_is_held_stays_to_the_last_bit_and_steps_go_on_as_before(setting):
    """Two residues of four are sampled again, three times: eager, recorded, and with other random numbers."""
    model, tokens, start = setting
    p, q = propagator_of(model, tokens), propagator_of(model, tokens)
    new, history = run(p, p.start(batch_of(start, 1)), 2)
    mask = torch.tensor([[False, True, True, False]])
    many = [History.join([history] * 3), new[-1].map(lambda x: x.expand(3, *x.shape[1:])), mask.expand(3, -1)]

    def again(seed):
        return p.resample(*many, [torch.Generator().manual_seed(seed + k) for k in range(3)])

    first, second, other = again(0), again(0), again(3)
    assert equal(first, second) and not equal(first, other)
    for candidate in (*(first[k] for k in range(3)), other[0]):
        assert equal(candidate[[0, 3]], new[-1][0, [0, 3]])
        assert not torch.isclose(candidate.frames.translations, new[-1][0].frames.translations)[1:3].any()
        r = candidate.frames.rotations
        torch.testing.assert_close(r @ r.mT, torch.eye(3).expand_as(r), atol=1e-4, rtol=0)
    assert not equal(first[0], first[1])
    _, same = run(q, q.start(batch_of(start, 1)), 2)
    assert equal(run(p, history, 2, first=2)[0], run(q, same, 2, first=2)[0])


def test_a_rotated_start_gives_the_rotated_step(setting):
    """The noise is given in the frames' own axes except for the translations, so only those are turned by hand."""
    model, tokens, start = setting
    if model.config.network.parameterization == "plain":
        pytest.skip("the prior of the paper is fixed in space; the law is tested on the denoiser")
    turn = exponential(torch.tensor([0.3, 1.0, -0.4]))
    turned = Conformation(
        Rigid(turn @ start.frames.rotations, start.frames.translations @ turn.T), start.torsions, start.angles
    )
    p = propagator_of(model, tokens)
    n = 400
    a = p.step(p.start(batch_of(start, n)), torch.Generator().manual_seed(0)).frames
    b = p.step(p.start(batch_of(turned, n)), torch.Generator().manual_seed(1)).frames
    mean_a, mean_b = a.translations.mean(0) @ turn.T, b.translations.mean(0)
    error = (a.translations.std(0).norm() + b.translations.std(0).norm()) / n**0.5
    assert (mean_a - mean_b).abs().max() < 4 * error


def test_window_is_bounded(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens, context_frames=2)
    _, history = run(p, p.start(batch_of(start, 1)), 5)
    assert history.n_frames == 2 and history.dropped == 4
    assert history.times.tolist() == [400.0, 500.0]


def test_a_window_changes_nothing_until_it_is_full(setting):
    model, tokens, start = setting
    bounded, endless = (propagator_of(model, tokens, context_frames=frames) for frames in (3, 20))
    few, _ = run(bounded, bounded.start(batch_of(start, 1)), 4)
    many, _ = run(endless, endless.start(batch_of(start, 1)), 4)
    assert equal(few[:3], many[:3]) and not equal(few[3:], many[3:])


def rotations_of(history):
    return history.conformations.frames.rotations


def with_window(tokens, context_frames):
    return propagator_of(model_of(replace(CONFIGS["peptide"], context_frames=context_frames)), tokens)


def test_a_window_of_hundreds_of_steps_stays_in_the_same_memory(peptide):
    tokens, start = peptide
    p, generator = with_window(tokens, 5), torch.Generator().manual_seed(0)
    history, sizes = p.start(batch_of(start, 1)), set()
    for k in range(300):
        history = p.extend(history, history.last, generator)
        if k % 60 == 0:
            p.step(history, generator)
            sizes.add(p._window._encoded[1].nbytes)
    assert history.n_frames == 5 and history.dropped == 296 and len(sizes) == 1
    assert history.times.tolist() == [100.0 * k for k in range(296, 301)]


@pytest.mark.parametrize("at_once", [2**14, 1])
def test_a_window_is_the_block_causal_pass_over_it(peptide, at_once, monkeypatch):
    """Whatever was known of it before: its keys and values are those of all its frames encoded together."""
    monkeypatch.setattr("openmm_starmd.context_window.PAIRS_AT_ONCE", at_once)
    tokens, start = peptide
    p = with_window(tokens, 4)
    _, history = run(p, p.start(batch_of(start, 1)), 6)
    p.step(history, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, inputs = p._window.encode(history), p._window.frame_inputs(history)
        expected = p.model.denoiser.encode(p._window.static, inputs, p.model.denoiser.cache(1, tokens.n_residues, 4))
    assert found.n_frames == expected.n_frames == 4 and inputs.index.tolist() == [0, 1, 2, 3]
    for a, b in ((found.keys, expected.keys), (found.values, expected.values)):
        torch.testing.assert_close(a[:, :, :, : b.shape[3]], b, atol=1e-5, rtol=1e-5)


def test_a_full_window_begins_with_its_oldest_frame(peptide):
    """The oldest frame is its own predecessor, one stride ago, as the first of a training window is."""
    tokens, start = peptide
    p = with_window(tokens, 4)
    _, history = run(p, p.start(batch_of(start, 1)), 6)
    p.step(history, torch.Generator().manual_seed(0))
    inputs = p._window.frame_inputs(history)
    assert inputs.stride.tolist() == [[100.0] * 4]
    own = [torch.equal(inputs.previous[:, k].torsions, inputs.conformation[:, k].torsions) for k in range(4)]
    assert own == [True, False, False, False]


def noting(encode, seen):
    """`Denoiser.encode` that notes which frames it gets."""
    return lambda static, context, *more: seen.append(context.index.tolist()) or encode(static, context, *more)


def test_frames_are_encoded_once_until_the_window_is_full(peptide, monkeypatch):
    tokens, start = peptide
    p, seen = with_window(tokens, 4), []
    monkeypatch.setattr(p.model.denoiser, "encode", noting(p.model.denoiser.encode, seen))
    run(p, p.start(batch_of(start, 1)), 6)
    assert seen == [[0], [1], [2], [3], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_replicas_that_part_and_join_keep_what_is_known_of_them(peptide, monkeypatch):
    tokens, start = peptide
    p, seen = with_window(tokens, 3), []
    monkeypatch.setattr(p.model.denoiser, "encode", noting(p.model.denoiser.encode, seen))
    together = parted = p.start(batch_of(start, 2))
    for k in range(4):
        parted = History.join(parted.split())
        assert equal(p.step(parted, generators(k)), p.step(together, generators(k)))
        parted, together = (p.extend(h, h.last, generators(k)) for h in (parted, together))
    assert seen == [[0], [1], [2], [0, 1, 2], [0, 1, 2]]


def test_a_reference_with_residues_farther_apart_is_another(peptide):
    tokens, start = peptide
    model = model_of(CONFIGS["paper"])
    wide = replace(start, frames=Rigid(start.frames.rotations, 1.5 * start.frames.translations))
    starts = [batch_of(start, 1), batch_of(wide, 1)]
    p, fresh = propagator_of(model, tokens), propagator_of(model, tokens)
    histories = [replace(p.start(starts[0]), reference=reference) for reference in starts]
    one, other = (p.step(history, generators(0, 1)) for history in histories)
    assert equal(other, fresh.step(histories[1], generators(0, 1))) and not equal(one, other)


def test_of_a_replaced_frame_alone_keys_and_values_are_made_anew(peptide, monkeypatch):
    tokens, start = peptide
    p, seen = with_window(tokens, 8), []
    _, history = run(p, p.start(batch_of(start, 1)), 4)
    p.step(history, torch.Generator().manual_seed(0))
    monkeypatch.setattr(p.model.denoiser, "encode", noting(p.model.denoiser.encode, seen))
    p.step(p.replace(history, batch_of(start, 1), 30.0, torch.Generator().manual_seed(5)), torch.Generator())
    assert seen == [[4]]


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_what_was_known_of_a_replaced_frame_is_forgotten(setting, steps):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    _, history = run(p, p.start(batch_of(start, 1)), steps)
    p.step(history, torch.Generator().manual_seed(0))
    replaced = p.replace(history, batch_of(start, 1), 30.0, torch.Generator().manual_seed(5))
    found, expected = (x.step(replaced, torch.Generator().manual_seed(0)) for x in (p, propagator_of(model, tokens)))
    assert equal(found, expected)


def test_the_same_frame_at_another_time_is_another_past(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    _, before = run(p, p.start(batch_of(start, 1)), 1)
    soon, late = (p.extend(before, batch_of(start, 1), torch.Generator().manual_seed(5), time=t) for t in (20.0, 300.0))
    assert torch.equal(rotations_of(soon), rotations_of(late))
    p.step(soon, torch.Generator().manual_seed(0))
    found, expected = (x.step(late, torch.Generator().manual_seed(0)) for x in (p, propagator_of(model, tokens)))
    assert equal(found, expected)


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_the_last_frame_is_replaced_and_no_other(setting, steps):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    before = p.start(batch_of(start, 1))
    if steps:
        _, before = run(p, before, steps)
    after = p.replace(before, batch_of(start, 1), 30.0, torch.Generator().manual_seed(5))
    assert torch.equal(rotations_of(after)[:, :-1], rotations_of(before)[:, :-1])
    assert not torch.equal(rotations_of(after)[:, -1], rotations_of(before)[:, -1])
    assert after.times.tolist() == [*before.times.tolist()[:-1], 100.0 * steps + 30]
    assert (after.n_frames, after.dropped) == (before.n_frames, before.dropped)


def test_a_foreign_history_is_refused(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    _, history = run(p, p.start(batch_of(start, 1)), 2)
    mask = tokens.features.torsion_mask
    with pytest.raises(HistoryError, match="checkpoint of the same system"):
        History.unpack(history.pack(mask), mask[1:], history.times, history.dropped)


def test_a_packed_history_is_small_and_loses_nothing(setting):
    """Frames, reference and times come back to the last bit, in little more than ten numbers a residue and frame."""
    model, tokens, start = setting
    p, mask = propagator_of(model, tokens), tokens.features.torsion_mask
    _, history = run(p, p.start(batch_of(start, 1)), 3)
    vector = history.pack(mask)
    frames = history.n_frames + 1
    assert vector.numel() == History.packed_length(history.n_frames, mask)
    assert vector.numel() == frames * (7 * tokens.n_residues + int(mask.sum()))
    restored = History.unpack(vector, mask, history.times, history.dropped)
    for a, b in ((history.conformations, restored.conformations), (history.reference, restored.reference)):
        assert equal(a, b)
    assert torch.equal(restored.pack(mask), vector)


FURTHER = {
    "separable": ModelConfig(NetworkConfig(**SMALL, joint_attention=False), denoising_steps=3),
    "ancestral": ModelConfig(NetworkConfig(**SMALL), denoising_steps=2, sampler="ancestral"),
    "regression": ModelConfig(
        NetworkConfig(**SMALL, parameterization="plain", torsions="regression"),
        CONFIGS["paper"].process,
        denoising_steps=3,
    ),
}


RECORDED = {name: config for name, config in (CONFIGS | FURTHER).items() if name != "half precision"}


@pytest.fixture(params=RECORDED)
def config(request):
    return RECORDED[request.param]


def recording(model, tokens, **settings):
    """A propagator that leaves room as on a GPU, on whatever device."""
    p = propagator_of(model, tokens, **settings)
    p.forget(roomy=True)
    return p


def unrecorded(model, tokens, **settings):
    p = propagator_of(model, tokens, **settings)
    p.forget(records=False)
    return p


def test_recorded_jumps_are_the_same_to_the_last_bit(config, peptide):
    """On a CPU, behind growing, full and sliding windows, and for other numbers of replicas."""
    tokens, start = peptide
    model = model_of(config)
    eager, recorded = (make(model, tokens, context_frames=4) for make in (unrecorded, propagator_of))
    history = eager.start(batch_of(start, 2))
    for k in range(8):
        expected, found = (p.step(history, generators(k)) for p in (eager, recorded))
        assert equal(found, expected)
        history = eager.extend(history, expected, generators(k))
    recordings = [known._recording for _, known in recorded._window.execution._recordings.values()]
    assert sum(isinstance(recording, Tape) for recording in recordings) >= 2
    one = history.split()[1]
    assert equal(*(p.step(one, generators(9, 1)) for p in (eager, recorded)))


def generators(k, batch=2):
    """On the CPU, so that all devices get the same noise."""
    return [torch.Generator().manual_seed(10 * k + b) for b in range(batch)]


def assert_alike(found, expected, tolerance):
    torch.testing.assert_close(found.frames.rotations, expected.frames.rotations, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.frames.translations, expected.frames.translations, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.torsions.sin(), expected.torsions.sin(), atol=tolerance, rtol=0)
    torch.testing.assert_close(found.torsions.cos(), expected.torsions.cos(), atol=tolerance, rtol=0)
    torch.testing.assert_close(found.angles, expected.angles, atol=tolerance, rtol=0)


def test_recordings_last_for_all_runs_of_as_many_replicas(peptide):
    """As those that are sampled again; the numbers are those of each run alone."""
    tokens, start = peptide
    model = model_of(CONFIGS["peptide"])
    p, eager = propagator_of(model, tokens, context_frames=2), unrecorded(model, tokens, context_frames=2)
    _, history = run(p, p.start(batch_of(start, 3)), 2)
    recordings = set()
    for k in range(6):
        part = history.split()[k % 3]
        assert equal(*(q.step(part, generators(k, 1)) for q in (p, eager)))
        recordings.add(p._window.execution.runner("denoise", (3, True), None, part.last))
    assert len(recordings) == 1 and isinstance(recordings.pop()._recording, Tape)


@pytest.mark.parametrize("broken", range(3))
def test_a_broken_recording_is_found_out_and_changes_no_bit(peptide, monkeypatch, broken):
    """One operation is missing in every tape: the first, the middle or the last one."""
    needed = tape._needed

    def incomplete(operations):
        kept = needed(operations)
        del kept[broken * (len(kept) - 1) // 2]
        return kept

    tokens, start = peptide
    model = model_of(CONFIGS["peptide"])
    expected, _ = run(unrecorded(model, tokens), propagator_of(model, tokens).start(batch_of(start, 2)), 6)
    monkeypatch.setattr(tape, "_needed", incomplete)
    p = propagator_of(model, tokens)
    with pytest.warns(UserWarning, match="could not be recorded") as told:
        found, _ = run(p, p.start(batch_of(start, 2)), 6)
    assert equal(found, expected) and len(told) == 1


@pytest.mark.filterwarnings("error")
def test_the_environment_turns_recording_off(peptide, monkeypatch):
    tokens, start = peptide
    model = model_of(CONFIGS["peptide"])
    recorded = propagator_of(model, tokens, context_frames=2)
    expected, _ = run(recorded, recorded.start(batch_of(start, 1)), 4)
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.setattr(Replayed, "__init__", None)
    p = propagator_of(model, tokens, context_frames=2)
    found, _ = run(p, p.start(batch_of(start, 1)), 4)
    assert equal(found, expected)


def test_static_inputs_are_computed_for_one_molecule(setting):
    """Those of replicas are the same bits, and only networks that see a reference structure make them of each."""
    model, tokens, start = setting
    p, count, same = propagator_of(model, tokens), [], []
    static_inputs = model.denoiser.static_inputs
    model.denoiser.static_inputs = lambda *args: count.append(len(args[0].residue_type)) or static_inputs(*args)
    try:
        for batch in (1, 3, 2):
            history = p.start(batch_of(start, batch))
            p.step(history, generators(0, batch))
            with torch.inference_mode():
                expected = static_inputs(tokens.features.expand(batch), history.reference)
            map_tensors(lambda a, b: same.append(torch.equal(a, b)) or a, p._window.static, expected)
    finally:
        del model.denoiser.static_inputs
    assert all(same) and count == ([1, 3, 2] if model.config.network.reference_structure else [1])


def test_large_frames_are_not_recorded(peptide, monkeypatch):
    tokens, start = peptide
    p = propagator_of(model_of(CONFIGS["peptide"]), tokens, context_frames=2)
    for pairs, recorded in ((2 * 16 - 1, False), (2 * 16, True)):
        monkeypatch.setattr("openmm_starmd.diffusion.execution.PAIRS_AT_ONCE", pairs)
        run(p, p.start(batch_of(start, 2)), 1)
        assert bool(p._window.execution._recordings) == recorded


@pytest.mark.parametrize("name, room", [*((name, 4) for name in RECORDED), ("peptide", 1), ("paper", 64)])
def test_recorded_jumps_are_the_eager_ones(name, peptide, device, room, monkeypatch):
    """Behind growing windows, masked up to their room, and behind full and sliding ones; noise is the same."""
    monkeypatch.setattr("openmm_starmd.diffusion.execution.LEAST_ROOM", room)
    tokens, start = peptide
    model = model_of(RECORDED[name])
    eager, recorded = (
        make(m, tokens, context_frames=6) for make, m in ((unrecorded, model), (recording, model.on(device)))
    )
    history, theirs = (p.start(batch_of(start, 2)) for p in (eager, recorded))
    for k in range(9):
        expected, found = eager.step(history, generators(k)), recorded.step(theirs, generators(k))
        assert_alike(found.to("cpu"), expected, 2e-4)
        history, theirs = (p.extend(h, expected, generators(k)) for p, h in ((eager, history), (recorded, theirs)))


def test_another_past_is_not_mixed_up_with_the_recorded_one(peptide):
    """A new start, other batches, and a replaced frame."""
    tokens, start = peptide
    model = model_of(CONFIGS["peptide"])
    eager, recorded = unrecorded(model, tokens), recording(model, tokens)
    first = eager.start(batch_of(start, 2))
    later = eager.extend(first, eager.step(first, generators(0)), generators(0))
    other, replaced = eager.start(batch_of(start, 2), time=100.0), eager.replace(later, first.last, 30.0, generators(3))
    pasts = [first, later, other, later, later.split()[1], replaced, first]
    for history in pasts:
        given = generators(5, len(history.last.angles))
        found, expected = (p.step(history, [g.clone_state() for g in given]) for p in (recorded, eager))
        assert_alike(found, expected, 2e-4)


def test_nothing_that_is_recorded_makes_the_host_wait(config, peptide, no_waiting, monkeypatch):
    tokens, start = peptide
    recorded = recording(model_of(config), tokens)
    history = recorded.start(batch_of(start, 2))

    def jump(history, k):
        return recorded.extend(history, recorded.step(history, generators(k)), generators(k))

    for k in range(4):  # all tables are there
        history = jump(history, k)
    calls = []

    def watched(self):
        calls.append(self)
        with no_waiting():
            self._advance()

    monkeypatch.setattr(Replayed, "_repeat", watched)
    history = jump(history, 4)
    jump(history, 5)
    assert len(calls) >= 2 * len(recorded.sampler.times())
