"""Checks of the arrays that the scores take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MIN_EXPECTED = 1e-12
"""Least expected counts: keeps the deviance finite for genes that the baseline has not seen."""


def matching(
    prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None, names: tuple[str, str] = ("prediction", "truth")
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Arrays of one shape: two of floats, and the mask (all True for None)."""
    first, second = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    chosen = np.ones(second.shape, dtype=bool) if mask is None else np.asarray(mask)
    if chosen.dtype != np.bool_:
        raise ValueError(f"`mask` must be boolean, got dtype {chosen.dtype}.")
    for name, shape in ((names[0], first.shape), ("mask", chosen.shape)):
        if shape != second.shape:
            raise ValueError(f"`{name}` has shape {shape}, `{names[1]}` has {second.shape}; they must be the same.")
    return first, second, chosen


def require_any(mask: NDArray[np.bool_]) -> None:
    """Refuse an empty mask."""
    if not mask.any():
        raise ValueError("`mask` selects no entry; nothing can be scored.")
