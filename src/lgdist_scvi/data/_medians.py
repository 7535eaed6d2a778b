"""Medians of groups in place of values that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray


def group_median(values: NDArray, groups: NDArray, of: NDArray) -> NDArray:
    """Look up the median of groups; NaN for a group without values.

    Parameters
    ----------
    values, groups
        Values and the numbers of their groups, ``(n_values,)``.
    of
        Numbers of the groups to look up, ``(n_spots,)``.
    """
    return pd.Series(values).groupby(groups).median().reindex(of).to_numpy()


def fill_by_group(values: NDArray, groups: NDArray, missing: NDArray[np.bool_]) -> NDArray:
    """Give spots whose value is missing the median of their group, or of all where a group knows none.

    Parameters
    ----------
    values, groups
        Value and number of the group of every spot, ``(n_spots,)``.
    missing
        True for the spots to fill, ``(n_spots,)``; with none or all of them `values` stay as they are.
    """
    if not missing.any() or missing.all():
        return values
    medians = group_median(values[~missing], groups[~missing], groups)
    overall = np.median(values[~missing])
    return np.where(missing, np.where(np.isnan(medians), overall, medians), values).astype(values.dtype)
