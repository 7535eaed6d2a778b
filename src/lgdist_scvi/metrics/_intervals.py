"""Whether predicted intervals hold what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ._arrays import MIN_EXPECTED, matching, require_any

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.stats.distributions import rv_frozen


def coverage(truth: ArrayLike, lower: ArrayLike, upper: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Share of true values inside their predicted intervals.

    Parameters
    ----------
    truth
        True values, usually ``(n_spots, n_genes)``, in any unit.
    lower, upper
        Ends of the intervals, included, of the same shape, in the unit of ``truth``.
    mask
        Boolean array of the same shape, True for the entries to score; all of them by default.

    Returns
    -------
    Share between 0 and 1, to be compared with the nominal coverage.

    Raises
    ------
    ValueError
        If the shapes differ, an interval ends before it starts, or the mask selects nothing.

    Examples
    --------
    >>> lgdist_scvi.metrics.coverage(truth=[1, 2, 3, 4], lower=[0, 0, 0, 0], upper=[2, 2, 2, 4])
    0.75
    """
    low, true, chosen = matching(lower, truth, mask, names=("lower", "truth"))
    high, _, _ = matching(upper, truth, mask, names=("upper", "truth"))
    require_any(chosen)
    if n_crossed := int((low > high)[chosen].sum()):
        raise ValueError(f"`lower` exceeds `upper` in {n_crossed} entries; swap them or check the quantiles.")
    return float(((true >= low) & (true <= high))[chosen].mean())


def count_distribution(mean: ArrayLike, std: ArrayLike) -> rv_frozen:
    """Distribution of counts whose expectation is known up to a standard deviation.

    The expectation is assumed to be gamma-distributed, so the count is negative binomial: counting noise adds to the
    uncertainty of the expectation.

    Parameters
    ----------
    mean
        Expected counts, usually ``(n_spots, n_genes)``, at the depth of the counts in question.
    std
        Standard deviation of the expectation, in counts, of the same shape; 0 leaves counting noise only.

    Returns
    -------
    Frozen :data:`scipy.stats.nbinom`, with ``cdf``, ``ppf`` and so on.

    References
    ----------
    The mixture of :cite:t:`greenwood1920inquiry`; "The read-outs" of :doc:`/method`.

    Examples
    --------
    >>> distribution = lgdist_scvi.metrics.count_distribution(mean=[1.0, 10.0], std=[0.5, 2.0])
    >>> distribution.mean()
    array([ 1., 10.])
    >>> distribution.var()  # the square of std adds to the counting noise
    array([ 1.25, 14.  ])
    """
    expected = np.maximum(np.asarray(mean, dtype=np.float64), MIN_EXPECTED)
    # A minimal overdispersion, because the negative binomial has no parameters for none.
    over = np.maximum(np.square(np.asarray(std, dtype=np.float64)), 1e-9 * expected)
    return stats.nbinom(expected**2 / over, expected / (expected + over))


def count_coverage(
    counts: ArrayLike, mean: ArrayLike, std: ArrayLike, level: float, mask: ArrayLike | None = None
) -> float:
    """Share of counts inside their central predicted intervals, corrected for the discreteness of counts.

    An interval of small counts cannot hold exactly, say, 80%, because it ends at a whole number. So a count is covered
    by the fraction of its step of the distribution function that lies between ``(1 - level) / 2`` and
    ``(1 + level) / 2``. If the distributions are right, the result is `level`.

    Parameters
    ----------
    counts
        True counts, usually ``(n_spots, n_genes)``.
    mean, std
        Expected counts and the standard deviation of the expectation, of the same shape, as in
        :func:`count_distribution`.
    level
        Nominal coverage of the intervals, between 0 and 1.
    mask
        Boolean array of the same shape, True for the entries to score; all of them by default.

    Returns
    -------
    Share between 0 and 1, to be compared with `level`.

    Raises
    ------
    ValueError
        If the shapes differ, the mask selects nothing, or `level` is not between 0 and 1.

    References
    ----------
    The non-randomised probability integral transform of :cite:t:`czado2009predictive`.

    Examples
    --------
    >>> mean = np.full(1000, 5.0)
    >>> counts = np.random.default_rng(0).poisson(mean)
    >>> round(lgdist_scvi.metrics.count_coverage(counts, mean, std=np.zeros(1000), level=0.8), 1)
    0.8
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level}.")
    expected, true, chosen = matching(mean, counts, mask, names=("mean", "counts"))
    spread, _, _ = matching(std, counts, mask, names=("std", "counts"))
    require_any(chosen)
    distribution = count_distribution(expected[chosen], spread[chosen])
    below, upto = distribution.cdf(true[chosen] - 1), distribution.cdf(true[chosen])
    inside = np.minimum(upto, (1 + level) / 2) - np.maximum(below, (1 - level) / 2)
    return float(np.clip(inside / np.maximum(upto - below, 1e-12), 0, 1).mean())
