"""Correlation between genes: that of the joint samples, moved towards that of the counts, with standard errors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lgdist_scvi.model import _correlation
from lgdist_scvi.model._correlation import N_PATCHES

GENES = ["gene_3", "gene_1", "gene_8", "gene_5"]


def batch(counts, depth, observed=None):
    observed = np.ones(counts.shape, dtype=bool) if observed is None else observed
    return SimpleNamespace(counts=torch.tensor(counts), depth=torch.tensor(depth), observed=torch.tensor(observed))


def given(monkeypatch, trained, samples, seen):
    """Let the model draw these samples and see these counts."""

    def parts(*_):
        yield slice(0, samples.shape[1]), seen, samples.astype(np.float32)

    monkeypatch.setattr(type(trained), "_samples", parts)
    options = {"indices": range(samples.shape[1]), "gene_list": GENES[: samples.shape[2]], "n_samples": len(samples)}
    return trained.get_gene_correlation(silent=True, **options).to_numpy()


def test_correlation_of_log_values_is_that_of_the_samples(trained):
    chosen = np.flatnonzero(np.arange(trained.adata.n_obs) % 3 > 0)
    options = {"indices": chosen, "gene_list": GENES, "n_samples": 6, "seed": 4, "silent": True, "scale": "log1p"}
    found, std = trained.get_gene_correlation(return_std=True, **options)
    assert list(found.index) == list(found.columns) == list(std.index) == list(std.columns) == GENES
    covariance = np.mean([np.cov(sample.T.astype(float)) for sample in trained.sample_expression(**options)], axis=0)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found, covariance / np.outer(deviation, deviation), atol=1e-5)


def test_minibatches_and_order_do_not_matter(trained):
    chosen = np.flatnonzero(np.arange(trained.adata.n_obs) % 3 > 0)
    options = {"indices": chosen, "gene_list": GENES, "n_samples": 6, "seed": 4, "silent": True}
    found, std = trained.get_gene_correlation(return_std=True, **options)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(np.diag(std), 0, atol=1e-6)
    assert (std.to_numpy()[np.triu_indices(4, 1)] > 0).all()
    again = trained.get_gene_correlation(**options | {"indices": chosen[::-1], "batch_size": 37})
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_deep_counts_outweigh_the_samples_and_shallow_ones_do_not(trained, monkeypatch):
    rng = np.random.default_rng(0)
    n_spots = trained.adata.n_obs
    rate = 0.1 * np.exp(0.3 * rng.normal(size=(n_spots, 1)) * [1, -1])  # opposite to each other
    samples = 0.1 * np.exp(0.3 * rng.normal(size=(4, n_spots, 2)))  # unrelated
    true = np.corrcoef(rate.T)[0, 1]
    for depth, low, high in ((1e7, true - 0.02, true + 0.02), (20.0, -0.2, 0.2)):
        seen = batch(rng.poisson(rate * depth).astype(float), np.full(n_spots, depth))
        assert low < given(monkeypatch, trained, samples, seen)[0, 1] < high


def test_hidden_counts_do_not_matter(trained, monkeypatch):
    rng = np.random.default_rng(0)
    samples = 0.1 * np.exp(0.3 * rng.normal(size=(4, trained.adata.n_obs, 3)))
    observed = rng.random(samples.shape[1:]) < 0.7
    counts, depth = rng.poisson(100, observed.shape).astype(float), np.full(len(observed), 1e4)
    found = given(monkeypatch, trained, samples, batch(counts, depth, observed))
    other = given(monkeypatch, trained, samples, batch(np.where(observed, counts, 999.0), depth, observed))
    np.testing.assert_array_equal(found, other)


def test_noise_of_covariances_is_that_of_repeated_counting():
    rng = np.random.default_rng(0)
    depth = rng.uniform(50, 500, 200)[:, None]
    rate = rng.gamma(4, 0.01, (200, 3))
    visible, unit = (rng.random(rate.shape) < 0.8).astype(float), 1 / depth
    found = []
    for _ in range(4000):
        values = rng.poisson(rate * depth) * visible * unit
        counted = _correlation._Products.of(values, visible, unit)
        found.append(counted.covariance())
    claimed = _correlation._Noise.of(rate[None], visible, unit).variance(counted)
    np.testing.assert_allclose(np.var(found, axis=0), claimed, rtol=0.15)
    # Counting does not bias them.
    both = visible[:, :, None] * visible[:, None]
    means = [[np.average(rate[:, i], weights=both[:, i, j]) for j in range(3)] for i in range(3)]
    true = (both * rate[:, :, None] * rate[:, None]).sum(axis=0) / both.sum(axis=0) - np.array(means) * np.array(
        means
    ).T
    np.testing.assert_allclose(
        np.mean(found, axis=0), true, atol=4 * np.sqrt(claimed.max() / 4000) + 0.02 * claimed.max() ** 0.5
    )


def test_scales_differ(trained):
    options = {"gene_list": GENES, "n_samples": 3, "silent": True}
    rate, log = (trained.get_gene_correlation(scale=scale, **options) for scale in ("rate", "log1p"))
    assert np.abs(rate - log).to_numpy().max() > 1e-3


def test_standard_errors_grow_with_dependence(trained, monkeypatch):
    """Spots of one part go together: with every spot twice, in the same part, the standard error stays."""

    def doubled(view, rows, *_):
        values = np.repeat(np.random.default_rng(0).normal(size=(1, len(rows) // 2, 2)), 5, axis=0)
        nothing = batch(np.zeros((len(rows), 2)), np.ones(len(rows)), np.zeros((len(rows), 2), dtype=bool))
        yield slice(0, len(rows)), nothing, np.repeat(values, 2, axis=1).astype(np.float32)

    monkeypatch.setattr(type(trained), "_samples", lambda *arguments: doubled(*arguments[1:]))
    rows = np.arange(trained.adata.n_obs // (2 * N_PATCHES) * 2 * N_PATCHES)
    _, std = trained.get_gene_correlation(indices=rows, gene_list=GENES[:2], n_samples=5, return_std=True)
    assert std.iloc[0, 1] == pytest.approx(1 / np.sqrt(len(rows) / 2), rel=0.4)


def test_too_few_spots_are_refused(trained):
    with pytest.raises(ValueError, match="over 9 spots says nothing; choose at least 10"):
        trained.get_gene_correlation(indices=range(9), silent=True)
