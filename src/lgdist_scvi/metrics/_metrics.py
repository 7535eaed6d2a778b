"""Scores of a completion against held-out truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import kl_div

from ._arrays import MIN_EXPECTED, matching, require_any

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def masked_mse(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> float:
    """Mean squared error over the entries of a mask.

    Parameters
    ----------
    prediction
        Predicted values, usually ``(n_spots, n_genes)``, in the unit of ``truth``.
    truth
        True values of the same shape, in any unit.
    mask
        Boolean array of the same shape, True for the entries to score. Other entries may be NaN.

    Returns
    -------
    The error, in the squared unit of ``truth``.

    Raises
    ------
    ValueError
        If the shapes differ or the mask selects nothing.

    Examples
    --------
    >>> prediction, truth = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
    >>> lgdist_scvi.metrics.masked_mse(prediction, truth, np.array([[True, True]]))
    2.0
    """
    return float(np.square(_masked_error(prediction, truth, mask)).mean())


def masked_mae(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> float:
    """Mean absolute error over the entries of a mask.

    Parameters
    ----------
    prediction
        Predicted values, usually ``(n_spots, n_genes)``, in the unit of ``truth``.
    truth
        True values of the same shape, in any unit.
    mask
        Boolean array of the same shape, True for the entries to score. Other entries may be NaN.

    Returns
    -------
    The error, in the unit of ``truth``.

    Raises
    ------
    ValueError
        If the shapes differ or the mask selects nothing.

    Examples
    --------
    >>> prediction, truth = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
    >>> lgdist_scvi.metrics.masked_mae(prediction, truth, np.array([[True, True]]))
    1.0
    """
    return float(np.abs(_masked_error(prediction, truth, mask)).mean())


def gene_pearson(
    prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None, min_entries: int = 10
) -> NDArray[np.float64]:
    """Pearson correlation over spots, gene by gene.

    Parameters
    ----------
    prediction
        Predicted values, ``(n_spots, n_genes)``, in any unit.
    truth
        True values of the same shape, in any unit.
    mask
        Boolean array of the same shape, True for the entries to score; all of them by default. Other entries may be
        NaN.
    min_entries
        Genes with fewer entries get no correlation.

    Returns
    -------
    One value per gene, ``(n_genes,)``, no unit, from -1 to 1; NaN where undefined (too few entries or a constant
    truth). A constant prediction of a varying truth scores 0: it explains nothing.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional.

    References
    ----------
    Product-moment correlation :cite:p:`pearson1895note`, gene by gene.

    Examples
    --------
    >>> truth = np.random.default_rng(0).poisson(5, (20, 3))
    >>> lgdist_scvi.metrics.gene_pearson(2 * truth + 1, truth)
    array([1., 1., 1.])
    """
    predicted, true, chosen = matching(prediction, truth, mask)
    if predicted.ndim != 2:
        raise ValueError(f"`prediction` must be spots x genes, got {predicted.ndim} dimension(s).")
    n = chosen.sum(axis=0)
    centred_prediction, flat_prediction = _centred(predicted, chosen, n, _precision(prediction))
    centred_truth, flat_truth = _centred(true, chosen, n, _precision(truth))
    norm = np.sqrt(np.square(centred_prediction).sum(axis=0) * np.square(centred_truth).sum(axis=0))
    covariance = (centred_prediction * centred_truth).sum(axis=0)
    correlation = np.divide(covariance, norm, out=np.full(n.shape, np.nan), where=norm > 0)
    correlation[flat_prediction] = 0.0
    correlation[flat_truth | (n < max(min_entries, 2))] = np.nan
    return np.clip(correlation, -1.0, 1.0)


def poisson_deviance(counts: ArrayLike, expected: ArrayLike) -> NDArray[np.float64]:
    """Poisson deviance of every entry, ``2 (y log(y / mu) - y + mu)`` with ``0 log 0 = 0``.

    Parameters
    ----------
    counts
        Observed counts ``y``, usually ``(n_spots, n_genes)``.
    expected
        Expected counts ``mu`` of the same shape, or of one that broadcasts.

    Returns
    -------
    Values of at least 0, of the same shape, no unit; infinite where a count is positive and its expectation 0.

    Raises
    ------
    ValueError
        If a value is negative.

    References
    ----------
    :cite:t:`mccullagh1989generalized`, section 2.3.

    Examples
    --------
    >>> lgdist_scvi.metrics.poisson_deviance([0, 2], [1.0, 2.0])
    array([2., 0.])
    """
    observed, mean = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    for name, values in {"counts": observed, "expected": mean}.items():
        if n_negative := int((values < 0).sum()):
            raise ValueError(f"`{name}` holds {n_negative} negative value(s); the Poisson deviance needs counts.")
    return 2 * kl_div(observed, mean)


def deviance_explained(
    counts: ArrayLike,
    rate: ArrayLike,
    depth: ArrayLike,
    baseline_rate: ArrayLike,
    mask: ArrayLike | None = None,
    floor: float = 0.01,
) -> float:
    """Share of the Poisson deviance of the gene means that a prediction explains.

    Parameters
    ----------
    counts
        Held-out counts, ``(n_spots, n_genes)``, zeros included.
    rate
        Predicted rates of the same shape: expected counts per unit of ``depth``.
    depth
        Depth of every spot in the held-out counts, ``(n_spots,)``, in counts.
    baseline_rate
        Rate of every gene over all training spots, ``(n_genes,)``: counts per unit of ``depth``.
    mask
        Boolean array of the shape of ``counts``, True for the entries to score; all of them by default. Other entries
        may be NaN.
    floor
        Share of the baseline mixed into the rates, so that a predicted rate of 0 does not give an infinite deviance.

    Returns
    -------
    Share: 1 for a perfect prediction, 0 for one as good as the gene means, negative for a worse one; NaN if the gene
    means leave no deviance.

    Raises
    ------
    ValueError
        If the shapes do not fit, a value is negative, ``floor`` is not a share, or the mask selects nothing.

    References
    ----------
    The R-squared of deviances of :cite:t:`cameron1996rsquared`, relative to means of the training data, not of the
    scored data.

    Examples
    --------
    >>> counts, rate = adata.layers["counts"].toarray(), adata.layers["rate"]
    >>> depth, means = counts.sum(axis=1), counts.sum(axis=0) / counts.sum()
    >>> 0 < lgdist_scvi.metrics.deviance_explained(counts, rate, depth, means) < 1
    True
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"`floor` is a share between 0 and 1, got {floor}.")
    predicted, observed, chosen = matching(rate, counts, mask, names=("rate", "counts"))
    depths, baseline = np.asarray(depth, dtype=np.float64), np.asarray(baseline_rate, dtype=np.float64)
    if observed.ndim != 2 or depths.shape != observed.shape[:1] or baseline.shape != observed.shape[1:]:
        raise ValueError(
            f"`counts` of shape {observed.shape} need one `depth` per spot and one `baseline_rate` per gene, got "
            f"shapes {depths.shape} and {baseline.shape}."
        )
    require_any(chosen)
    null = (depths[:, None] * baseline)[chosen]
    expected = (1 - floor) * (depths[:, None] * predicted)[chosen] + floor * null
    left = _total_deviance(observed[chosen], expected)
    total = _total_deviance(observed[chosen], null)
    return float(1 - left / total) if total > 0 else float("nan")


def _masked_error(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Prediction minus truth of the chosen entries, flat."""
    predicted, true, chosen = matching(prediction, truth, mask)
    require_any(chosen)
    return predicted[chosen] - true[chosen]


def _total_deviance(counts: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Sum of the deviances, finite also where a count is positive and its expectation 0."""
    nothing = (counts > 0) & (expected >= 0) & (expected < MIN_EXPECTED)
    return float(poisson_deviance(counts, np.where(nothing, MIN_EXPECTED, expected)).sum())


def _precision(values: ArrayLike) -> float:
    """Relative spacing of numbers of the original dtype of the values."""
    dtype = np.asarray(values).dtype
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)


def _centred(
    values: NDArray[np.float64], mask: NDArray[np.bool_], n: NDArray[np.int_], precision: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Chosen values minus their mean per column (0 elsewhere), and which columns are constant up to rounding."""
    kept = np.where(mask, values, 0.0)
    centred = np.where(mask, kept - kept.sum(axis=0) / np.maximum(n, 1), 0.0)
    return centred, np.abs(centred).max(axis=0, initial=0.0) <= 8 * precision * np.abs(kept).max(axis=0, initial=0.0)
