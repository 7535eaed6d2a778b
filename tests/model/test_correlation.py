"""Correlation between genes: that of the joint samples, with standard errors."""

import numpy as np
import pytest

from lgdist_scvi.model._correlation import N_PATCHES

GENES = ["gene_3", "gene_1", "gene_8", "gene_5"]


def test_correlation_is_that_of_the_samples(trained):
    chosen = np.flatnonzero(np.arange(trained.adata.n_obs) % 3 > 0)
    options = {"indices": chosen, "gene_list": GENES, "n_samples": 6, "seed": 4, "silent": True}
    found, std = trained.get_gene_correlation(return_std=True, **options)
    assert list(found.index) == list(found.columns) == list(std.index) == list(std.columns) == GENES
    covariance = np.mean([np.cov(sample.T.astype(float)) for sample in trained.sample_expression(**options)], axis=0)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found, covariance / np.outer(deviation, deviation), atol=1e-5)
    np.testing.assert_allclose(np.diag(std), 0, atol=1e-6)
    assert (std.to_numpy()[np.triu_indices(4, 1)] > 0).all()
    # In whatever order and in whatever minibatches.
    again = trained.get_gene_correlation(**options | {"indices": chosen[::-1], "batch_size": 37})
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_scales_differ(trained):
    options = {"gene_list": GENES, "n_samples": 3, "silent": True}
    rate, log = (trained.get_gene_correlation(scale=scale, **options) for scale in ("rate", "log1p"))
    assert np.abs(rate - log).to_numpy().max() > 1e-3


def test_standard_errors_grow_with_dependence(trained, monkeypatch):
    """Spots of one part go together: with every spot twice, in the same part, the standard error stays."""

    def doubled(view, rows, *_):
        values = np.repeat(np.random.default_rng(0).normal(size=(1, len(rows) // 2, 2)), 5, axis=0)
        yield slice(0, len(rows)), None, np.repeat(values, 2, axis=1).astype(np.float32)

    monkeypatch.setattr(type(trained), "_samples", lambda *arguments: doubled(*arguments[1:]))
    rows = np.arange(trained.adata.n_obs // (2 * N_PATCHES) * 2 * N_PATCHES)
    _, std = trained.get_gene_correlation(indices=rows, gene_list=GENES[:2], n_samples=5, return_std=True)
    assert std.iloc[0, 1] == pytest.approx(1 / np.sqrt(len(rows) / 2), rel=0.4)


def test_too_few_spots_are_refused(trained):
    with pytest.raises(ValueError, match="over 9 spots says nothing; choose at least 10"):
        trained.get_gene_correlation(indices=range(9), silent=True)
