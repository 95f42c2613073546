"""Tapes: what was done is done again, for other numbers, in the same memory; what cannot be repeated is refused."""

import pytest
import torch
from torch.nn import functional

from openmm_starmd.diffusion import tape as module
from openmm_starmd.diffusion.tape import Tape

N = 6
UNARY = [
    lambda x: x.sin(),
    lambda x: x * 0.5,
    lambda x: 1 - x,
    lambda x: x.square().clamp_max(2.0),
    lambda x: x.mT,
    lambda x: x.roll(1, -1),
    lambda x: x.flip(0),
    lambda x: x[1:].expand(N, N - 1, N)[:, 0].new_ones(N, N) * x,
    lambda x: x.reshape(2, -1).t().reshape(N, N),
    lambda x: functional.gelu(x),
    lambda x: functional.softplus(x),
    lambda x: functional.layer_norm(x, (N,)),
    lambda x: x.softmax(-1),
    lambda x: x - x.mean(0),
    lambda x: x.to(torch.float64).exp().clamp(0, 5).to(x.dtype),
    lambda x: torch.where(x > 0, x, -x),
    lambda x: x.index_select(0, x.sum(1).argsort()),
    lambda x: torch.stack([part + 1 for part in x.unbind(0)]),
    lambda x: x.max(-1).values[:, None] + x,
    lambda x: x.contiguous().clone().add_(1).sigmoid_(),
    lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True) - x,
]
BINARY = [
    lambda x, y: x + y,
    lambda x, y: x @ y * 0.1,
    lambda x, y: torch.cat([x[:2], y[2:]]),
    lambda x, y: torch.addcmul(x, x, y, value=0.1),
    lambda x, y: functional.linear(x, y, y[0]) * 0.1,
    lambda x, y: functional.scaled_dot_product_attention(x[None, None], y[None, None], x[None, None])[0, 0],
    lambda x, y: torch.cdist(x, y) * 0.1,
    lambda x, y: torch.lerp(x, y, 0.3),
]


def program(seed):
    """A random function of two tensors, with parts that nobody reads."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(n):
        return int(torch.randint(n, (1,), generator=generator))

    steps = [
        (BINARY[drawn(len(BINARY))], [drawn(k + 2), drawn(k + 2)])
        if drawn(3) == 0
        else (UNARY[drawn(len(UNARY))], [drawn(k + 2)])
        for k in range(30)
    ]

    def run(x, y):
        values = [x, y]
        for function, places in steps:
            values.append(function(*(values[k] for k in places)))
        return values[-1], values[-3]

    return run


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_a_replay_does_what_the_function_does(seed, inference):
    function, generator = program(seed), torch.Generator().manual_seed(seed)
    with torch.inference_mode(inference):
        x, y, a, b = (torch.randn(N, N, generator=generator) for _ in range(4))

        def advance():
            for state, new in zip((a, b), function(x, y), strict=True):
                state.copy_(new)

        tape = Tape(advance)
        for repetition in range(3):
            if repetition:
                for t in (x, y):
                    t.normal_(generator=generator)
                tape.replay()
            for found, expected in zip((a, b), function(x, y), strict=True):
                assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_states_go_on_from_replay_to_replay():
    k, x = torch.zeros(1, dtype=torch.int64), torch.zeros(3)
    targets = torch.arange(12.0).view(4, 3)

    def advance():
        x.copy_(0.5 * (x + targets.index_select(0, k)[0]))
        k.add_(1)

    tape = Tape(advance)
    for _ in range(3):
        tape.replay()
    expected = torch.zeros(3)
    for target in targets:
        expected = 0.5 * (expected + target)
    assert torch.equal(x, expected) and k.tolist() == [4]


def test_what_nobody_reads_is_left_out_and_views_are_not_repeated():
    x, result = torch.ones(4, 4), torch.zeros(4)

    def advance():
        (x.sin() + 3).cos()
        x.mT[1:].unsqueeze(0)
        result.copy_(x.mT.select(0, 1) * 2)

    assert len(Tape(advance)._calls) == 2  # the product, and its copy


def test_memory_is_shared_by_what_is_not_needed_at_the_same_time(monkeypatch):
    made, empty = [], torch.empty
    monkeypatch.setattr(module.torch, "empty", lambda *shape, **k: made.append(shape[0]) or empty(*shape, **k))
    x, result = torch.randn(1000), torch.zeros(1000)

    def advance():
        y = x
        for _ in range(50):
            y = y.sin() + x[:1]
        result.copy_(y)

    tape = Tape(advance)
    x.normal_()
    tape.replay()
    assert 4000 <= sum(made) <= 3 * 4096
    found = result.clone()
    advance()
    assert torch.equal(found, result)


@pytest.mark.parametrize(
    "asking",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.randn(3) + x,
        lambda x: x.clone().normal_(),
        lambda x: functional.dropout(x),
    ],
)
def test_what_cannot_be_repeated_is_refused(asking):
    with pytest.raises(RuntimeError, match=r"aten::\w+(\.\w+)? cannot be repeated"):
        Tape(lambda: asking(torch.ones(3)))
