"""Level and power of the score test and of the guided false discovery rate."""

import numpy as np
import pytest
from scipy import sparse, stats

from lgdist_scvi.model._score_test import Moments, guided_fdr, p_values, score_test, step_up

N_GENES = 3000


def sums(counts, depth, sections):
    """Sums over the spots of each section."""
    members = sparse.csr_matrix((np.ones(len(sections)), (sections, np.arange(len(sections)))))
    exposure = (members @ depth)[:, None] + np.zeros(counts.shape[1])
    squares = (members @ depth**2)[:, None] + np.zeros(counts.shape[1])
    n_spots = np.asarray(members.sum(axis=1))
    return Moments(
        members @ counts, exposure, members @ counts**2, members @ (counts * depth[:, None]), squares, n_spots
    )


def drawn(random, n_spots, mean, noise=0.0, ratio=1.0, depth_ratio=1.0, n_sections=1, scatter=0.0):
    depth = depth_ratio * random.gamma(5, 0.2, n_spots)
    sections = np.arange(n_spots) % n_sections
    rate = ratio * np.exp(scatter * random.normal(size=(n_sections, N_GENES)))[sections]
    rate = mean * depth[:, None] * rate
    if noise:
        rate = rate * random.gamma(1 / noise, noise, rate.shape)
    return sums(random.poisson(rate).astype(float), depth, sections)


@pytest.mark.parametrize("mean", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("sizes", [(10, 10), (10, 1000), (200, 200)])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_level(mean, sizes, noise):
    """Depths differ between the groups, as between contiguous halves of a layer."""
    random = np.random.default_rng(0)
    groups = [drawn(random, n, mean, noise, depth_ratio=scale) for n, scale in zip(sizes, (1.0, 1.5), strict=True)]
    p = p_values(score_test(*groups, np.full(N_GENES, 1 / noise if noise else 1e4)).score)
    assert (p < 0.05).mean() < 0.07
    if mean * min(sizes) > 4:  # else too few counts for any p below
        assert (p < 0.05).mean() > 0.035
    # Without an expected overdispersion that within the groups is seen.
    if noise and min(sizes) >= 200:
        p = p_values(score_test(*groups, np.full(N_GENES, 1e4)).score)
        assert 0.03 < (p < 0.05).mean() < 0.07


def test_direction_and_information():
    random = np.random.default_rng(1)
    first, second = drawn(random, 100, 1.0, ratio=1.5), drawn(random, 100, 1.0)
    size = np.full(N_GENES, 1e4)
    tested = score_test(first, second, size)
    assert tested.score.mean() == pytest.approx(np.log(1.5) * np.sqrt(tested.information).mean(), rel=0.1)
    np.testing.assert_allclose(score_test(second, first, size).score, -tested.score, atol=1e-6)


def test_sections_of_other_levels_are_no_difference():
    """Groups of unequal shares in sections whose levels differ: within the sections nothing differs."""
    random = np.random.default_rng(2)
    level, counts = np.array([1.0, 5.0]), []
    for shares in ((150, 50), (50, 150)):
        sections = np.repeat([0, 1], shares)
        depth = random.gamma(5, 0.2, 200)
        counts.append(
            sums(random.poisson(level[sections, None] * depth[:, None], (200, N_GENES)).astype(float), depth, sections)
        )
    p = p_values(score_test(*counts, np.full(N_GENES, 1e4)).score)
    assert 0.035 < (p < 0.05).mean() < 0.065


def test_differences_that_vary_between_sections_are_less_certain():
    random, size = np.random.default_rng(3), np.full(N_GENES, 1e4)
    options = {"n_sections": 4, "depth_ratio": 1.0}
    alike = score_test(drawn(random, 400, 2.0, ratio=1.3, **options), drawn(random, 400, 2.0, **options), size)
    varied = score_test(
        drawn(random, 400, 2.0, ratio=1.3, scatter=0.3, **options), drawn(random, 400, 2.0, **options), size
    )
    assert np.abs(varied.score).mean() < 0.7 * np.abs(alike.score).mean()


def test_gene_without_a_count():
    first = drawn(np.random.default_rng(4), 10, 0.0)
    tested = score_test(first, first, np.ones(N_GENES))
    assert (tested.score == 0).all() and (tested.information == 0).all()


def genes_tested(random, n_genes, share):
    different = random.random(n_genes) < share
    sign = random.choice([-1, 1], n_genes)
    score = random.normal(size=n_genes) + 2.5 * different * sign

    class Result:
        pass

    result = Result()
    result.score, result.information = score, np.ones(n_genes)
    return result, different, sign


@pytest.mark.parametrize("n_genes", [60, 500])
@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("informed", [False, True])
def test_false_discovery_rate(n_genes, share, informed):
    random = np.random.default_rng(5)
    false, power, unguided = [], [], []
    for _ in range(300):
        tested, different, sign = genes_tested(random, n_genes, share)
        expected = random.normal(size=n_genes)
        if informed:
            expected = np.abs(expected) * sign + 2 * different * sign
        called = guided_fdr(tested, expected) < 0.05
        false.append(called[~different].sum() / max(called.sum(), 1))
        if share:
            power.append(called[different].mean())
            unguided.append((step_up(p_values(tested.score)) < 0.05)[different].mean())
    assert np.mean(false) < 0.05 + 3 * np.std(false) / np.sqrt(300)
    if share:
        # A guide that is right is worth much, one that says nothing costs little.
        assert np.mean(power) > (1.3 if informed else 0.75) * np.mean(unguided)


def test_step_up_is_that_of_benjamini_and_hochberg():
    p = np.random.default_rng(6).random(50) ** 2
    np.testing.assert_allclose(step_up(p), stats.false_discovery_control(p))
