"""Joint samples of the expression, and counts drawn from them."""

import numpy as np
import pytest
import torch
from scvi.criticism import PosteriorPredictiveCheck

from lgdist_scvi.module._joint import LARGEST_DEVIATION, ExpressionSamples

QUIET = {"silent": True}


def test_samples_average_to_the_completed_expression(trained):
    options = {"n_samples": 0, "return_numpy": True, "scale": "counts", "silent": True}
    expected = trained.get_completed_expression(**options)
    samples = trained.sample_expression(n_samples=400, scale="counts", **QUIET)
    assert samples.shape == (400, *expected.shape) and (samples >= 0).all()
    error = samples.std(0) / 20
    # Of the single entries, all within what 400 samples allow, but for a curvature of the shrinkage.
    assert (abs(samples.mean(0) - expected) < 5 * error + 0.05 * expected).mean() > 0.99
    assert samples.mean() == pytest.approx(expected.mean(), rel=0.01)


def test_standard_deviation_is_that_of_the_samples(trained):
    options = {"return_numpy": True, "scale": "counts", "silent": True}
    _, std = trained.get_completed_expression(return_std=True, **options)
    sampled = trained.sample_expression(n_samples=600, scale="counts", **QUIET).std(0)
    hidden = ~trained.adata.layers["observed"]
    # Of visible entries to first order.
    for entries, tolerance in ((hidden, 0.05), (~hidden, 0.1)):
        assert np.median(std[entries] / sampled[entries]) == pytest.approx(1, abs=tolerance)
        assert np.corrcoef(np.log(std[entries]), np.log(sampled[entries]))[0, 1] > 0.97


def test_a_known_count_leaves_less_of_a_deviation(trained, monkeypatch):
    """As in the posterior mean: with the count ``y``, ``mu (y + r) / (mu + r)`` grows less than ``mu``."""

    def sampled(log_ratio):
        constant = torch.full((), log_ratio)
        monkeypatch.setattr(ExpressionSamples, "_deviations", lambda *_: [constant] * 3)
        return trained.sample_expression(n_samples=3, scale="counts", **QUIET)

    ratio = (sampled(np.log(2)) / sampled(0.0))[0]
    observed = trained.adata.layers["observed"]
    np.testing.assert_allclose(ratio[~observed], 2, rtol=1e-4)
    assert (ratio[observed] < 2).all() and ratio[observed].min() < 1.2
    assert np.corrcoef(ratio[observed], np.log(trained._view().counts.toarray()[observed] + 1))[0, 1] < -0.3


@pytest.mark.parametrize("level", [-9.0, 9.0])
def test_no_draw_is_out_of_proportion(trained, monkeypatch, level):
    seen, deviations = [], ExpressionSamples._deviations

    def far_away(self, *arguments):
        self._levels = torch.full_like(self._levels, level)
        for deviation in deviations(self, *arguments):
            seen.append(deviation)
            yield deviation

    monkeypatch.setattr(ExpressionSamples, "_deviations", far_away)
    assert np.isfinite(trained.sample_expression(n_samples=2, **QUIET)).all()
    assert all((deviation == np.sign(level) * LARGEST_DEVIATION).all() for deviation in seen) and len(seen) >= 2


def test_samples_are_joint(trained):
    """Errors of neighbours go together, and so do those of a gene in all spots, whose level is drawn once."""
    samples = np.log(trained.sample_expression(n_samples=400, **QUIET) + 1e-9)
    samples = samples - samples.mean(0)
    correlation = np.corrcoef(samples[:, :, 0].T)
    graph = trained.adata.obsp["lgdist_connectivities"].toarray() > 0
    other = ~graph & ~np.eye(len(graph), dtype=bool)
    assert correlation[graph].mean() > correlation[other].mean() + 0.01
    assert samples.mean(axis=(1, 2)).std() > 1.5 * samples.std() / np.sqrt(samples[0].size)


def test_a_spot_has_its_samples_whichever_are_asked_for(trained):
    genes = list(trained.adata.var_names[[7, 2]])
    options = {"gene_list": genes, "n_samples": 3, "seed": 1}
    whole = trained.sample_expression(**options, **QUIET)
    rows = [60, 3, 17]
    some = trained.sample_expression(indices=rows, batch_size=2, **options, **QUIET)
    np.testing.assert_allclose(some, whole[:, rows], rtol=1e-4)
    assert abs(trained.sample_expression(**options | {"seed": 2}, **QUIET) / whole - 1).mean() > 0.01
    again = trained.sample_expression(trained.adata.copy(), **options, **QUIET)
    assert np.array_equal(again, whole)


def test_scales_of_samples(trained):
    options = {"n_samples": 2, "gene_list": list(trained.adata.var_names[:3])}
    rate, counts, log = (
        trained.sample_expression(scale=scale, **options, **QUIET) for scale in ("rate", "counts", "log1p")
    )
    depth = trained._view().depth
    np.testing.assert_allclose(counts, rate * depth[:, None], rtol=1e-5)
    np.testing.assert_allclose(log, np.log1p(rate * 1e4), rtol=1e-5)


def test_counts_are_drawn_around_the_samples(trained):
    counts = trained.posterior_predictive_sample(n_samples=60)
    rates = trained.sample_expression(n_samples=60, scale="counts", **QUIET)
    assert counts.shape == (*trained.adata.shape, 60)
    counts = counts.todense()
    assert (counts == np.round(counts)).all()
    off = counts.transpose(2, 0, 1) - rates
    assert abs(off.mean()) < 4 * np.sqrt(rates.mean() / rates.size)
    assert off.var() == pytest.approx(rates.mean(), rel=0.1)
    one = trained.posterior_predictive_sample(indices=[4, 2], gene_list=list(trained.adata.var_names[:5]))
    assert one.shape == (2, 5)


def test_scvi_tools_criticises_the_model(trained):
    adata = trained.adata.copy()
    adata.layers["counts"] = adata.layers["counts"].astype(int)  # scvi-tools fails on sparse counts that are floats
    check = PosteriorPredictiveCheck(adata, {"lgdist": trained}, count_layer_key="counts", n_samples=2)
    check.coefficient_of_variation("features")
    found = check.metrics["cv_cell"]
    assert np.corrcoef(found["lgdist"], found["Raw"])[0, 1] > 0.5


@pytest.mark.parametrize(("options", "error"), [({"n_samples": 0}, "n_samples"), ({"scale": "x"}, "scale")])
def test_wrong_options_of_samples(trained, options, error):
    with pytest.raises(ValueError, match=error):
        trained.sample_expression(**options, **QUIET)


def test_samples_need_a_field(small):
    model = small.fit(small.build(small.tissue(n_spots=60), {"n_factors": 0}), max_epochs=1)
    with pytest.raises(ValueError, match="latent field"):
        model.sample_expression(**QUIET)
