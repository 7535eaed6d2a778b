"""Score test between two groups on counts, with the depth as offset, and a guided false discovery rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import special, stats

from lgdist_scvi.data._hidden import dense

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from lgdist_scvi.data._view import SpotView

    Floats = NDArray[np.float64]

PRIOR_WEIGHT = 10.0
"""Precision of the overdispersion that the model expects, in the unit of that estimated within the groups."""
ALIKE = 4.0
"""Degrees of freedom that differences do not vary between sections beforehand."""
BIN_GENES = 50
_TAIL = 0.5
_AGREEING, _MOST_NULL = 0.9, 0.9
_TINY = 1e-12


class Moments(NamedTuple):
    """Sums over the spots of groups of what is visible, ``(n_groups, n_genes)``, the number of spots ``(n_groups, 1)``."""

    counts: Floats
    exposure: Floats
    squares: Floats
    """Squared counts."""
    products: Floats
    """Counts times depth."""
    exposures: Floats
    """Squared depth."""
    n_spots: Floats


class Scores(NamedTuple):
    """Result of the test, ``(n_genes,)``."""

    score: Floats
    """Standard normal if the rates do not differ; above 0 where the first group has more."""
    information: Floats
    """Squared expectation of the score for a log ratio of one between the groups."""


def moments(view: SpotView, members: sparse.csr_matrix) -> Moments:
    """Sums over the spots of groups, ``(n_groups, n_spots)`` with ones."""
    depth = view.depth.astype(np.float64)
    counts = view.counts.astype(np.float64)
    some = np.unique(members.indices)
    members, counts, depth = members[:, some].astype(np.float64), counts[some], depth[some]
    hidden = view.hidden.of(some)

    def exposed(power: int) -> Floats:
        values = depth**power
        lost = dense(members @ hidden.times(values))
        return np.asarray(members @ values)[:, None] - lost + np.zeros((members.shape[0], counts.shape[1]))

    return Moments(
        dense(members @ counts),
        exposed(1),
        dense(members @ counts.multiply(counts)),
        dense(members @ counts.multiply(depth[:, None])),
        exposed(2),
        np.asarray(members.sum(axis=1), dtype=np.float64).reshape(-1, 1),
    )


def score_test(first: Moments, second: Moments, size: NDArray) -> Scores:
    """Test whether the shares of two groups differ, gene by gene, within the same sections.

    Given the total of the two groups in a section, the count of the first is binomial if the rates do not differ; more variable
    than that where counts are overdispersed or the rates of spots differ within the groups. A difference that itself varies
    between sections is taken for that much less certain.

    Parameters
    ----------
    first, second
        Sums of the two groups, in the same sections, ``(n_sections, n_genes)``.
    size
        Inverse overdispersion that the model expects, ``(n_genes,)``.

    References
    ----------
    Score test of a Poisson regression with an offset: :cite:p:`mccullagh1989generalized`.
    """
    both = [np.maximum(group.exposure, _TINY) for group in (first, second)]
    total = first.counts + second.counts
    part = both[0] / (both[0] + both[1])
    expected, variance = total * part, total * part * (1 - part)
    overdispersion = _inflation(first, second, size)
    inflation = overdispersion
    # A difference that is not the same in all sections.
    n_sections = len(total)
    if n_sections > 1:
        residual = first.counts - expected
        slope = residual.sum(axis=0) / np.maximum(variance.sum(axis=0), _TINY)
        spread = ((residual - slope * variance) ** 2 / np.maximum(variance * inflation, _TINY)).sum(axis=0)
        inflation = inflation * np.maximum((ALIKE + spread) / (ALIKE + n_sections - 1), 1)
    all_counts, all_expected, all_variance = total.sum(axis=0), expected.sum(axis=0), variance.sum(axis=0)
    share = np.clip(all_expected / np.maximum(all_counts, _TINY), _TINY, 1 - _TINY)
    inflation = inflation * all_variance / np.maximum(all_counts * share * (1 - share), _TINY)
    inflation = np.maximum(inflation, _TINY)
    # Half of the chance of what was seen itself counts, so that the level is right for small counts too.
    one, other = (group.counts.sum(axis=0) / inflation + 0.5 for group in (first, second))
    above, below = special.betainc(one, other, share), special.betainc(other, one, 1 - share)
    score = np.where(
        above < below, stats.norm.isf(np.maximum(above, 1e-300)), stats.norm.ppf(np.maximum(below, 1e-300))
    )
    seen = all_counts > 0
    information = all_variance / np.maximum(overdispersion, _TINY)
    return Scores(np.where(seen, score, 0.0), np.where(seen, information, 0.0))


def _inflation(first: Moments, second: Moments, size: NDArray) -> Floats:
    """Variance of the score over that of Poisson counts, ``(n_genes,)``: that expected, and that within the groups."""
    both = np.maximum(first.exposure + second.exposure, _TINY)
    poisson = modelled = measured = uncertain = np.zeros(len(size))
    for group, other in ((first, second), (second, first)):
        # As the variance of the group's counts counts in that of the score.
        part = (other.exposure / both) ** 2
        rate = group.counts / np.maximum(group.exposure, _TINY)
        around = group.squares - 2 * rate * group.products + rate**2 * group.exposures
        expected = part * rate * group.exposure
        poisson = poisson + expected.sum(axis=0)
        modelled = modelled + (part * rate**2 * group.exposures).sum(axis=0) / size
        measured = measured + (part * around * group.n_spots / np.maximum(group.n_spots - 1, 1)).sum(axis=0)
        # Of a mean over spots, whose squared deviations vary as those of Poisson counts do.
        mean = np.maximum(rate * group.exposure / group.n_spots, _TINY)
        uncertain = uncertain + (expected**2 * (2 + 1 / mean) / np.maximum(group.n_spots - 1, 0.5)).sum(axis=0)
    poisson = np.maximum(poisson, _TINY)
    weight = poisson**2 / np.maximum(uncertain, _TINY**2)
    inflation = (PRIOR_WEIGHT * (1 + modelled / poisson) + weight * measured / poisson) / (PRIOR_WEIGHT + weight)
    return np.where(poisson > _TINY, inflation, 1.0)


def p_values(score: Floats) -> Floats:
    """Chance of a score this far from 0 or farther, ``(n_genes,)``."""
    return 2 * stats.norm.sf(np.abs(score))


def guided_fdr(tested: Scores, expected: Floats) -> Floats:
    """False discovery rates of tests of which some are expected to differ, in one direction.

    Genes are ordered by the score that is expected of them, which does not depend on their scores if they do not differ. In each bin
    of them the share without a difference is estimated, and genes of bins with few of these are called with less evidence of
    their own. Expectations that do not come true in a bin therefore gain nothing.

    Parameters
    ----------
    tested
        Result of the tests.
    expected
        Expected log ratio of the first to the second group, ``(n_genes,)``.

    References
    ----------
    Grouped procedure: :cite:p:`hu2010grouped`; covariates: :cite:p:`ignatiadis2016ihw`.
    """
    agreeing = stats.norm.sf(tested.score * np.where(expected < 0, -1, 1))
    # Most of the level is spent on the direction that is expected.
    p = np.minimum(np.minimum(agreeing / _AGREEING, (1 - agreeing) / (1 - _AGREEING)), 1)
    order = np.argsort(np.argsort(-np.abs(expected) * np.sqrt(tested.information), kind="stable"), kind="stable")
    group = order * max(1, len(p) // BIN_GENES) // len(p)
    n_genes = np.bincount(group)
    null = np.minimum((np.bincount(group, p > _TAIL) + 1) / ((1 - _TAIL) * n_genes), 1)[group]
    # No bin is given up altogether.
    likely = np.minimum(null, _MOST_NULL)
    weight = (1 - likely) / likely
    return np.minimum(step_up(p / weight) * (null * weight).mean(), 1)


def step_up(p: Floats) -> Floats:
    """Benjamini and Hochberg's adjusted values, not bounded by 1 where the given ones are not."""
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(ranked[::-1])[::-1]
    return adjusted
