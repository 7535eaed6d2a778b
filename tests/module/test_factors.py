"""The factor model: what it recovers, what it may see, and where it knows that it knows nothing."""

import pytest
import torch

from lgdist_scvi.data._batch import Batch
from lgdist_scvi.module._factors import PENALTY, SIZE, WEIGHT, FactorModel
from lgdist_scvi.module._normalisation import log_normalise

N, G, K = 300, 60, 3


def make_batch(counts, observed, depth):
    unused = dict.fromkeys(set(Batch._fields) - {"counts", "observed", "depth"})
    return Batch(counts=counts * observed, observed=observed, depth=depth, **unused)


class Tissue:
    """Counts whose log rates are linear in three factors."""

    def __init__(self, depth=3000.0):
        rng = torch.Generator().manual_seed(0)
        self.share = torch.rand(G, generator=rng) + 0.2
        self.share /= self.share.sum()
        factors, loadings = torch.randn(N, K, generator=rng), 0.5 * torch.randn(G, K, generator=rng)
        self.rate = self.share * (factors @ loadings.T).exp()
        depths = depth * (0.5 + torch.rand(N, generator=rng))
        self.counts = torch.poisson(self.rate * depths[:, None], generator=rng)
        self.observed = torch.rand(N, G, generator=rng) < 0.8
        self.batch = make_batch(self.counts, self.observed, depths)


@pytest.fixture(scope="module")
def tissue():
    return Tissue()


def fitted(tissue, n_factors=5):
    model = FactorModel(G, n_factors)
    batch = tissue.batch
    model.fit(batch.counts, batch.observed, batch.depth, tissue.share)
    return model


@pytest.fixture(scope="module")
def model(tissue):
    torch.manual_seed(0)
    return fitted(tissue)


def log_error(log_rate, tissue, entries):
    return (log_rate - tissue.rate.log())[entries].square().mean()


def test_hidden_entries_are_predicted_from_the_others(model, tissue):
    prediction = model(tissue.batch, tissue.observed, tissue.share)
    hidden = ~tissue.observed
    mean_only = log_error(tissue.share.log().expand(N, G), tissue, hidden)
    assert log_error(prediction.log_rate, tissue, hidden) < 0.1 * mean_only


def test_entries_that_are_not_visible_do_not_matter(model, tissue):
    visible = tissue.observed.clone()
    visible[:, 7] = False
    masked = tissue.observed[:, 7]
    changed = tissue.batch._replace(counts=tissue.batch.counts.clone(), depth=tissue.batch.depth.clone())
    changed.counts[masked, 7] += 50
    changed.depth[masked] += 50
    one, other = (model(b, visible, tissue.share) for b in (tissue.batch, changed))
    # The depth that is shown differs by rounding only.
    torch.testing.assert_close(one.log_rate, other.log_rate, rtol=1e-4, atol=1e-4)
    seen = model(changed, tissue.observed, tissue.share)
    assert (seen.log_rate - other.log_rate)[masked].abs().max() > 1e-2


def test_factors_are_the_posterior_mode(model, tissue):
    prediction = model(tissue.batch, tissue.observed, tissue.share)
    ratio = prediction.log_rate - tissue.share.log()
    factors = torch.linalg.lstsq(model.loadings, ratio.T).solution.T.requires_grad_()
    log_mean = (tissue.share * tissue.batch.depth[:, None]).log() + factors @ model.loadings.T
    nll = (SIZE + tissue.batch.counts) * torch.logaddexp(log_mean, torch.tensor(SIZE).log())
    nll = ((nll - tissue.batch.counts * log_mean) * tissue.observed).sum()
    (nll + PENALTY / 2 * factors.square().sum()).backward()
    assert factors.grad.abs().max() < 0.1


def test_some_genes_are_predicted_as_among_all(model, tissue):
    genes = torch.tensor([41, 0, 7])
    model.detection.normal_()
    some, whole = (model(tissue.batch, tissue.observed, tissue.share, chosen) for chosen in (genes, None))
    torch.testing.assert_close(some.log_rate, whole.log_rate[:, genes])
    torch.testing.assert_close(some.detected, whole.detected[:, genes])
    assert torch.equal(some.weight, whole.weight)


def test_without_counts_the_rates_are_the_mean_and_nothing_is_known(model, tissue):
    prediction = model(tissue.batch, torch.zeros_like(tissue.observed), tissue.share)
    torch.testing.assert_close(prediction.log_rate, tissue.share.log().expand(N, G))
    torch.testing.assert_close(prediction.weight, torch.zeros(N, 1), atol=1e-6, rtol=0)


def test_more_counts_are_known_better(model, tissue):
    known = model(tissue.batch, tissue.observed, tissue.share).weight / WEIGHT
    shallow = Tissue(depth=60.0)
    less = model(shallow.batch, shallow.observed, shallow.share).weight / WEIGHT
    assert ((known > 0) & (known < 1)).all()
    assert less.mean() < known.mean() - 0.05


def test_huge_counts_stay_finite(tissue):
    counts = tissue.counts.clone()
    counts[0, 0], counts[1] = 1e6, 1e6
    depth = tissue.batch.depth.clone()
    depth[:2] = counts[:2].sum(1)
    batch = make_batch(counts, tissue.observed, depth)
    model = FactorModel(G, 5)
    model.fit(batch.counts, batch.observed, batch.depth, tissue.share)
    prediction = model(batch, batch.observed, tissue.share)
    assert all(part.isfinite().all() for part in prediction)


@pytest.mark.parametrize("n_spots", [1, 4])
def test_fewer_spots_than_factors(tissue, n_spots):
    batch = make_batch(tissue.counts[:n_spots], tissue.observed[:n_spots], tissue.batch.depth[:n_spots])
    model = FactorModel(G, 5)
    model.fit(batch.counts, batch.observed, batch.depth, tissue.share)
    assert model(batch, batch.observed, tissue.share).log_rate.isfinite().all()
    assert (model.loadings[:, n_spots:] == 0).all()


def test_detected_values_are_regressed_without_bias(model, tissue):
    prediction = model(tissue.batch, tissue.observed, tissue.share)
    model.fit_detection([(prediction.log_rate, tissue.batch)])
    detected = model(tissue.batch, tissue.observed, tissue.share).detected
    error = detected - log_normalise(tissue.counts, tissue.batch.depth)
    for entries in (tissue.observed, ~tissue.observed):
        assert abs(error[entries & (tissue.counts > 0)].mean()) < 0.03
    one_count = log_normalise(torch.ones(N, 1), tissue.batch.depth)
    assert error[tissue.observed & (tissue.counts > 0)].std() < 0.9 * (one_count - detected).std()
