"""The scores against their definitions, scipy and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import d2_tweedie_score, mean_absolute_error, mean_poisson_deviance, mean_squared_error

from lgdist_scvi import metrics


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 8))
    return truth + rng.normal(size=truth.shape), truth, rng.random(truth.shape) < 0.5


def test_masked_errors(values):
    prediction, truth, mask = values
    assert metrics.masked_mse(prediction, truth, mask) == pytest.approx(
        mean_squared_error(truth[mask], prediction[mask])
    )
    assert metrics.masked_mae(prediction, truth, mask) == pytest.approx(
        mean_absolute_error(truth[mask], prediction[mask])
    )


def test_masked_errors_ignore_what_is_outside_the_mask(values):
    prediction, truth, mask = values
    hole = np.where(mask, prediction, np.nan)
    assert metrics.masked_mse(hole, np.where(mask, truth, np.inf), mask) == metrics.masked_mse(prediction, truth, mask)
    assert metrics.masked_mae(hole, truth, mask) == metrics.masked_mae(prediction, truth, mask)
    np.testing.assert_array_equal(
        metrics.gene_pearson(hole, truth, mask), metrics.gene_pearson(prediction, truth, mask)
    )


def test_masked_errors_do_not_overflow_small_integers():
    truth, prediction = np.array([[0, 250]], dtype=np.uint8), np.array([[250, 0]], dtype=np.uint8)
    assert metrics.masked_mse(prediction, truth, np.ones((1, 2), bool)) == 250**2


@pytest.mark.parametrize("masked", [False, True])
def test_gene_pearson_is_scipys(values, masked):
    prediction, truth, mask = values
    mask = mask if masked else None
    rows = mask if masked else np.ones(truth.shape, bool)
    expected = [stats.pearsonr(prediction[m, g], truth[m, g]).statistic for g, m in enumerate(rows.T)]
    np.testing.assert_allclose(metrics.gene_pearson(prediction, truth, mask), expected, rtol=1e-12)


def test_gene_pearson_where_it_is_not_defined(values):
    prediction, truth, mask = (array.copy() for array in values)
    mask[:, 0] = False
    mask[:9, 0] = True  # one too few
    mask[:, 1] = False
    mask[:10, 1] = True  # just enough
    mask[:, 2] = False
    truth[:, 3] = 0.1  # constant truth
    prediction[:, 4] = 0.1  # constant prediction
    truth[:, 5] = prediction[:, 5] = 0.1
    r = metrics.gene_pearson(prediction, truth, mask)
    assert np.isnan(r[[0, 2, 3, 5]]).all()
    assert r[4] == 0
    assert np.isfinite(r[[1, 6, 7]]).all()
    assert np.isfinite(metrics.gene_pearson(prediction, truth, mask, min_entries=9)[0])
    assert np.isnan(metrics.gene_pearson(prediction[:1], truth[:1], min_entries=0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prediction_that_varies_by_rounding_only_is_constant(values, dtype):
    _, truth, _ = values
    depth = np.random.default_rng(1).integers(500, 5000, size=(60, 1)).astype(dtype)
    gene_mean = (np.full((60, 8), 0.0123, dtype=dtype) * depth) / depth  # not bit-for-bit constant
    assert (gene_mean.max(0) > gene_mean.min(0)).any()
    assert (metrics.gene_pearson(gene_mean, truth) == 0).all()


def test_gene_pearson_survives_a_large_offset(values):
    prediction, truth, _ = values
    np.testing.assert_allclose(
        metrics.gene_pearson(prediction + 1e6, truth - 1e6), metrics.gene_pearson(prediction, truth), rtol=1e-8
    )


def test_poisson_deviance_is_sklearns():
    rng = np.random.default_rng(0)
    expected = rng.gamma(0.5, size=(50, 6)) + 1e-3
    counts = rng.poisson(expected)
    assert (counts == 0).any()
    deviance = metrics.poisson_deviance(counts, expected)
    assert deviance.shape == counts.shape
    assert deviance.mean() == pytest.approx(mean_poisson_deviance(counts.ravel(), expected.ravel()))


@given(st.integers(0, 10_000), st.floats(1e-6, 1e5))
def test_poisson_deviance_is_a_divergence(count, expected):
    deviance = metrics.poisson_deviance(count, expected)
    assert deviance >= 0
    assert metrics.poisson_deviance(count, count) == 0
    likelihood_gap = 2 * (stats.poisson.logpmf(count, max(count, 1e-300)) - stats.poisson.logpmf(count, expected))
    assert deviance == pytest.approx(likelihood_gap, rel=1e-6, abs=1e-6)


def test_poisson_deviance_at_zero():
    np.testing.assert_array_equal(metrics.poisson_deviance([0, 0, 2], [0.0, 3.0, 0.0]), [0, 6, np.inf])
    with pytest.raises(ValueError, match="`expected` holds 1 negative"):
        metrics.poisson_deviance([1, 1], [1.0, -1.0])
    with pytest.raises(ValueError, match="`counts` holds 2 negative"):
        metrics.poisson_deviance([-1, -1], 1.0)


@pytest.fixture
def thinned():
    rng = np.random.default_rng(0)
    depth = rng.integers(300, 3000, size=80)
    baseline = rng.dirichlet(np.ones(10))
    rate = baseline * rng.gamma(2, 0.5, size=(80, 10))
    counts = rng.poisson(depth[:, None] * rate)
    return counts, rate, depth, counts.sum(0) / depth.sum()


def test_deviance_explained_of_known_predictions(thinned):
    counts, rate, depth, baseline = thinned
    assert metrics.deviance_explained(counts, np.broadcast_to(baseline, rate.shape), depth, baseline) == pytest.approx(
        0, abs=1e-12
    )
    assert metrics.deviance_explained(counts, counts / depth[:, None], depth, baseline, floor=0) == pytest.approx(1)
    assert 0.5 < metrics.deviance_explained(counts, rate, depth, baseline) < 1
    assert metrics.deviance_explained(counts, 5 * rate, depth, baseline) < 0
    assert metrics.deviance_explained(counts, rate, depth, baseline, floor=1) == pytest.approx(0, abs=1e-12)


def test_deviance_explained_is_sklearns_d2_where_the_baseline_is_one_mean():
    """sklearn's null model is one mean, ours one rate per gene: they meet for one gene at one depth."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 0.001, size=(200, 1))
    counts = rng.poisson(1000 * rate)
    ours = metrics.deviance_explained(counts, rate, np.full(200, 1000), counts.mean(0) / 1000, floor=0)
    assert ours == pytest.approx(d2_tweedie_score(counts.ravel(), 1000 * rate.ravel(), power=1))


def test_deviance_explained_scores_the_mask_alone(thinned):
    counts, rate, depth, baseline = thinned
    mask = np.random.default_rng(1).random(counts.shape) < 0.3
    score = metrics.deviance_explained(counts, rate, depth, baseline, mask)
    elsewhere = np.where(mask, rate, np.nan)
    assert metrics.deviance_explained(counts, elsewhere, depth, baseline, mask) == score
    expected = depth[:, None] * (0.99 * rate + 0.01 * baseline)
    left = mean_poisson_deviance(counts[mask], expected[mask])
    total = mean_poisson_deviance(counts[mask], (depth[:, None] * baseline)[mask])
    assert score == pytest.approx(1 - left / total)


def test_deviance_explained_with_zeros(thinned):
    counts, rate, depth, baseline = thinned
    rate = rate.copy()
    rate[counts > 0] = 0  # the worst prediction is bad, not infinitely bad
    assert np.isfinite(metrics.deviance_explained(counts, rate, depth, baseline))
    baseline = baseline.copy()
    baseline[0] = 0  # a gene without a count in training
    assert np.isfinite(metrics.deviance_explained(counts, rate, depth, baseline))
    nothing = np.zeros((2, 1))
    assert np.isnan(metrics.deviance_explained(nothing, nothing, np.zeros(2), [0.1]))  # nothing to explain


def test_coverage_of_known_intervals():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(500, 40))
    half = np.full(truth.shape, stats.norm.ppf(0.95))
    assert metrics.coverage(truth, -half, half) == pytest.approx(0.9, abs=5 * np.sqrt(0.09 / truth.size))
    assert metrics.coverage(truth, truth, truth) == 1  # the ends belong to the interval
    mask = truth > half
    assert metrics.coverage(truth, -half, half, mask) == 0
    assert metrics.coverage(truth, np.where(mask, -half, np.nan), half, ~mask) == 0  # no interval covers nothing
    with pytest.raises(ValueError, match=f"exceeds `upper` in {truth.size} entries"):
        metrics.coverage(truth, half, -half)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_count_coverage_of_the_true_distribution(level):
    rng = np.random.default_rng(0)
    mean = rng.gamma(1.0, 1.5, size=(400, 50))  # mostly zeros and ones
    std = mean * rng.uniform(0, 0.8, size=mean.shape)
    rate = rng.gamma(1 / np.maximum(std / mean, 1e-3) ** 2) * std**2 / mean
    counts = rng.poisson(rate)
    assert metrics.count_coverage(counts, mean, std, level) == pytest.approx(level, abs=0.01)
    # Too sure, or off, is seen; intervals that end on whole counts would hold more than they should.
    assert metrics.count_coverage(rng.poisson(rate * 1.5), mean, std, level) < level - 0.02
    sure = mean > 1
    assert metrics.count_coverage(counts, mean, 0 * std, level, sure) < level - 0.02
    ends = [metrics.count_distribution(mean, std).ppf(q) for q in ((1 - level) / 2, (1 + level) / 2)]
    assert metrics.coverage(counts, *ends) > level + 0.01


def test_count_distribution_has_both_noises():
    distribution = metrics.count_distribution([4.0, 4.0, 0.0], [0.0, 2.0, 0.0])
    np.testing.assert_allclose(distribution.mean(), [4, 4, 0], atol=1e-6)
    np.testing.assert_allclose(distribution.var(), [4, 4 + 2**2, 0], atol=1e-6)
    with pytest.raises(ValueError, match="`level` must be between 0 and 1, got 1.5"):
        metrics.count_coverage([1], [1], [1], 1.5)
    with pytest.raises(ValueError, match="`std` has shape"):
        metrics.count_coverage([1], [1], [1, 1], 0.5)


def test_bad_arguments(values, thinned):
    prediction, truth, mask = values
    for score in (metrics.masked_mse, metrics.masked_mae):
        with pytest.raises(ValueError, match="selects no entry"):
            score(prediction, truth, np.zeros_like(mask))
        with pytest.raises(ValueError, match=r"`prediction` has shape \(60, 7\), `truth` has \(60, 8\)"):
            score(prediction[:, 1:], truth, mask)
        with pytest.raises(ValueError, match=r"`mask` has shape \(59, 8\)"):
            score(prediction, truth, mask[1:])
        with pytest.raises(ValueError, match="`mask` must be boolean"):
            score(prediction, truth, mask.astype(int))
    with pytest.raises(ValueError, match="spots x genes, got 1"):
        metrics.gene_pearson(prediction[0], truth[0])
    counts, rate, depth, baseline = thinned
    with pytest.raises(ValueError, match="one `depth` per spot"):
        metrics.deviance_explained(counts, rate, depth[1:], baseline)
    with pytest.raises(ValueError, match="one `baseline_rate` per gene"):
        metrics.deviance_explained(counts, rate, depth, baseline[1:])
    with pytest.raises(ValueError, match="share between 0 and 1"):
        metrics.deviance_explained(counts, rate, depth, baseline, floor=1.5)
    with pytest.raises(ValueError, match="negative"):
        metrics.deviance_explained(counts, -rate, depth, baseline)
    with pytest.raises(ValueError, match="selects no entry"):
        metrics.deviance_explained(counts, rate, depth, baseline, np.zeros(counts.shape, bool))
    with pytest.raises(ValueError, match="selects no entry"):
        metrics.coverage(truth, truth, truth, np.zeros_like(mask))
