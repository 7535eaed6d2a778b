"""Differences between batches that are the same in all kinds of tissue."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_KINDS = 12
"""Kinds of tissue that batches are compared within, at most; more than there are does no harm."""
FIT_SPOTS = 10_000
"""Maximum number of spots that the shifts are learnt from."""
_LEAST_SPOTS_PER_KIND = 20
_MOST_ROUNDS, _CLOSE = 15, 1e-3


class _Fit(NamedTuple):
    """Shifts, and how likely the values are with them."""

    shifts: NDArray[np.float64]
    likelihood: float


def batch_shifts(values: NDArray[np.float32], batch: NDArray[np.intp]) -> NDArray[np.float32]:
    """One shift for each batch, learnt with a mixture of kinds of tissue that all batches share.

    What a batch has more of, or what is different in one kind alone, is not shifted away, since a shift is the same for all kinds.

    Parameters
    ----------
    values
        Values, ``(n_spots, n_dimensions)``.
    batch
        Number of the batch of each spot, ``(n_spots,)``.

    Returns
    -------
    Shifts ``(n_batches, n_dimensions)`` with a mean of 0, in the unit of the values, to be subtracted.
    """
    n_batches = int(batch.max(initial=0)) + 1
    if n_batches == 1:
        return np.zeros((1, values.shape[1]), dtype=np.float32)
    chosen = np.random.default_rng(0).permutation(len(values))[:FIT_SPOTS]
    scale = max(float(values.std()), 1e-12)
    part, of = values[chosen].astype(np.float64) / scale, batch[chosen]
    means = _means(part, of, n_batches)
    # Batches of the same tissue start at equal means, others as they are.
    fits = [_learn(part, of, start) for start in (means - means.mean(axis=0), np.zeros_like(means))]
    return (max(fits, key=lambda fit: fit.likelihood).shifts * scale).astype(np.float32)


def _learn(values: NDArray[np.float64], batch: NDArray[np.intp], shifts: NDArray[np.float64]) -> _Fit:
    """Fit mixture and shifts in turn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    n_kinds = max(1, min(N_KINDS, len(values) // _LEAST_SPOTS_PER_KIND))
    start: dict[str, NDArray] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it goes on in the next round
        for _ in range(_MOST_ROUNDS):
            mixture = GaussianMixture(
                n_kinds, covariance_type="tied", reg_covar=1e-4, max_iter=10, random_state=0, **start
            )
            responsible = mixture.fit(values - shifts[batch]).predict_proba(values - shifts[batch])
            start = {
                "weights_init": mixture.weights_,
                "means_init": mixture.means_,
                "precisions_init": mixture.precisions_,
            }
            found = _means(values - responsible @ mixture.means_, batch, len(shifts))
            found -= found.mean(axis=0)
            change = np.abs(found - shifts).max()
            shifts = found
            if change < _CLOSE:
                break
        return _Fit(shifts, float(mixture.score(values - shifts[batch])))


def _means(values: NDArray[np.float64], batch: NDArray[np.intp], n_batches: int) -> NDArray[np.float64]:
    """Mean of each batch; 0 of one without spots."""
    total = np.zeros((n_batches, values.shape[1]))
    np.add.at(total, batch, values)
    return total / np.maximum(np.bincount(batch, minlength=n_batches), 1)[:, None]
