"""Correlations between genes without the noise of counting, and how far those of completed values are from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DETERMINED = 4.0
"""Standard errors by which the true variance of a gene must differ from zero."""


class NoiseFree(NamedTuple):
    """Correlations of the expression of genes, estimated twice with independent noise.

    Both are pairs of genes, ``(n_pairs,)``, in the order of ``numpy.triu_indices``. The noise makes them exceed 1 at times.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]


class Agreement(NamedTuple):
    """How correlations agree with those without noise."""

    slope: float
    """Slope on the correlations without noise; 1 is right, and more is inflation."""
    error: float
    """Root of the mean squared error."""
    by_gene: NDArray[np.float64]
    """Slope over the pairs of each gene, ``(n_genes,)``."""
    slope_error: float
    """Standard error of the slope, by leaving out one gene at a time."""


def shares(counts: NDArray, depth: NDArray) -> NDArray[np.float64]:
    """Counts as shares of the depth, ``(n_spots, n_genes)``; 0 in a spot without depth."""
    return np.asarray(counts, dtype=np.float64) / np.where(depth > 0, depth, 1)[:, None]


def covariance(one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """Covariances between columns, ``(n_genes, n_genes)``."""
    return (one - one.mean(axis=0)).T @ (other - other.mean(axis=0)) / (len(one) - 1)


def true_variance(one: NDArray, other: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance of genes over spots without noise, and its standard error.

    Parameters
    ----------
    one, other
        Shares of the given and of the held-out counts, ``(n_spots, n_genes)``, whose noise is independent.

    Returns
    -------
    Two arrays of shape ``(n_genes,)``.
    """
    products = (one - one.mean(axis=0)) * (other - other.mean(axis=0))
    return products.mean(axis=0), products.std(axis=0) / np.sqrt(len(products))


def noise_free(
    held_out: NDArray, depth: NDArray, variance: NDArray, known: NDArray[np.bool_], rng: np.random.Generator
) -> NoiseFree:
    """Estimate the correlations of genes from molecules that a method was not given.

    The molecules are parted once more. The noise of the two parts is independent, so the product of the errors that an
    estimate has beside both is free of their noise.

    Parameters
    ----------
    held_out
        Counts that were held out, ``(n_spots, n_genes)``.
    depth
        Their depth, ``(n_spots,)``.
    variance
        Variance of the genes without noise, as of :func:`true_variance`, ``(n_genes,)``.
    known
        True for the genes in question, whose variance is determined, ``(n_genes,)``.
    rng
        Parts the molecules.

    Returns
    -------
    Two estimates for each pair of the genes in question.
    """
    part = rng.binomial(np.asarray(held_out).astype(np.int64), 0.5)
    deviation = np.sqrt(variance[known])
    pairs = np.triu_indices(known.sum(), 1)
    found = []
    for counts in (part, held_out - part):
        half = shares(counts[:, known], depth / 2)
        found.append(covariance(half, half)[pairs] / np.outer(deviation, deviation)[pairs])
    return NoiseFree(*found)


def agreement(matrix: NDArray, truth: NoiseFree) -> Agreement:
    """Compare correlations with those without noise.

    Parameters
    ----------
    matrix
        Correlations, ``(n_genes, n_genes)``; pairs that are NaN are left out.
    truth
        Correlations of the same genes without noise.

    Returns
    -------
    Slope and error.
    """
    pairs = np.triu_indices(len(matrix), 1)
    values = np.asarray(matrix, dtype=np.float64)[pairs]
    there = np.isfinite(values)
    values, one, other = values[there], truth.first[there], truth.second[there]
    upper, lower = values * (one + other) / 2, one * other
    error = np.sqrt(max(((values - one) * (values - other)).mean(), 0)) if len(values) else np.nan
    ends = tuple(index[there] for index in pairs)
    upper_of, lower_of = (
        np.bincount(ends[0], part, len(matrix)) + np.bincount(ends[1], part, len(matrix)) for part in (upper, lower)
    )
    slope, slope_error = jackknife(upper.sum(), lower.sum(), upper_of, lower_of)
    return Agreement(slope, float(error), ratio(upper_of, lower_of), slope_error)


def ratio(upper: ArrayLike, lower: ArrayLike) -> NDArray[np.float64]:
    """Upper over lower; NaN where the lower is not above zero."""
    above, below = np.asarray(upper, dtype=np.float64), np.asarray(lower, dtype=np.float64)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def jackknife(upper: float, lower: float, upper_of: NDArray, lower_of: NDArray) -> tuple[float, float]:
    """Ratio of two sums and its standard error, by leaving out one part of the sums at a time.

    Parameters
    ----------
    upper, lower
        The sums.
    upper_of, lower_of
        What each part contributes to them, ``(n_parts,)``.

    Returns
    -------
    Ratio and standard error; NaN if the lower sum is not above zero.
    """
    left = ratio(upper - upper_of, lower - lower_of)
    n_parts = len(left)
    if n_parts < 2 or not np.isfinite(left).all():
        return float(ratio(upper, lower)), float("nan")
    return float(ratio(upper, lower)), float(np.sqrt((n_parts - 1) * left.var()))
