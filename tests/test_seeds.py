"""Seeds of single draws."""

from itertools import product

from openmm_starmd.seeds import derived


def test_every_part_of_the_key_counts_and_nothing_else():
    keys = list(product(range(5), range(5), ("jump", "context", "relaxation")))
    seeds = [derived(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [derived(*key) for key in keys]
    assert derived(1, 23) != derived(12, 3)


def test_torch_takes_every_seed():
    seeds = [derived("seed", k) for k in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sum(seed >= 2**62 for seed in seeds) > 400  # the highest bit is as random as the others
