"""Overdispersion of counts around predicted ones."""

import numpy as np
import torch
from scipy import stats

from lgdist_scvi.data._tissue import Spots
from lgdist_scvi.module._dispersion import FIRST_SIZE, Overdispersion


def spots_of(counts, observed=None):
    counts = torch.as_tensor(counts).float()
    observed = torch.ones_like(counts, dtype=torch.bool) if observed is None else torch.as_tensor(observed)
    return Spots(counts, observed, counts.sum(1))


def drawn(size, mean, n_spots, seed=0):
    return np.random.default_rng(seed).poisson(
        np.random.default_rng(seed + 1).gamma(size, mean / size, (n_spots, len(mean)))
    )


def test_the_likelihood_finds_the_overdispersion_of_every_gene():
    size = np.repeat([0.05, 0.5, 5.0], 4)
    mean = np.full(12, 4.0)
    counts = drawn(size, mean, 3000)
    found = Overdispersion(torch.ones(12))
    for part in np.array_split(counts, 3):
        found.add(torch.full(part.shape, 4.0), spots_of(part))
    np.testing.assert_allclose(found.size(), size, rtol=0.25)
    # What is not observed does not count.
    before = found.size()
    found.add(torch.full(part.shape, 4.0), spots_of(part + 100, np.zeros(part.shape, dtype=bool)))
    assert torch.equal(found.size(), before)


def test_a_gene_that_says_little_follows_the_typical_gene():
    mean = np.array([*[5.0] * 9, 1e-4])
    found = Overdispersion(torch.ones(10))
    found.add(torch.from_numpy(mean).float().expand(2000, 10), spots_of(drawn(0.3, mean, 2000)))
    sizes = found.size().numpy()
    assert abs(np.log(sizes[-1] / stats.gmean(sizes[:-1]))) < 0.2
    # Nothing was seen: as before.
    np.testing.assert_allclose(Overdispersion(torch.ones(3)).size(), FIRST_SIZE, rtol=0.1)


def test_one_spot_with_very_many_counts_does_not_decide():
    """As moments would."""
    counts = drawn(20.0, np.full(6, 2.0), 2000)
    counts[0, 0] = 80
    found = Overdispersion(torch.ones(6))
    found.add(torch.full((2000, 6), 2.0), spots_of(counts))
    moments = 2.0**2 * len(counts) / ((counts[:, 0] - 2.0) ** 2 - 2.0).sum()
    assert moments < 2 < 4 < found.size()[0]
