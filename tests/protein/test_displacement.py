"""Random numbers of replicas, alone and in company."""

import torch

from openmm_starmd.protein.displacement import Share, per_replica


def test_shares_of_a_batch_have_the_numbers_of_the_whole():
    def draw(rows, g):
        return torch.randn(*rows.shape, 2, generator=g)

    def numbers(rows, generator):
        return per_replica(draw, torch.zeros(len(range(6)[rows]), 3), generator)

    whole = numbers(slice(None), torch.Generator().manual_seed(1))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert torch.equal(numbers(rows, Share(torch.Generator().manual_seed(1), 6, rows)), whole[rows])
