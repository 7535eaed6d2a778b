"""Sections that were concatenated without being named."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from ._entries import listing

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

# Names of columns that usually identify sections.
SECTION_COLUMNS = (
    "library_id",
    "library",
    "section",
    "section_id",
    "sample",
    "sample_id",
    "slide",
    "slide_id",
    "batch",
)
LEAST_SPOTS = 20
"""Mean number of spots from which a group may be a section."""
MOST_MIXED = 0.05
"""Share of spots whose nearest spot is of another group, above which the groups lie over each other."""


def check_sections(adata: AnnData, positions: NDArray[np.float64], batch_key: str | None, *, stacklevel: int) -> None:
    """Refuse several sections that lie over each other, and warn of those that do not, where no section is named.

    Parameters
    ----------
    adata
        Annotated spots.
    positions
        Their positions, ``(n_spots, 2)`` or ``(n_spots, 3)``.
    batch_key
        Column of ``obs`` that groups spots knowingly; sections side by side need no warning then.
    stacklevel
        As in :func:`warnings.warn`, from the caller of this function.

    Raises
    ------
    ValueError
        If a column that usually names sections has several values that mix in space.
    """
    found = {str(column).lower(): column for column in reversed(adata.obs.columns)}
    candidates = [found[name] for name in SECTION_COLUMNS if name in found]
    nearest: NDArray | None = None
    for column in candidates:
        codes = pd.factorize(adata.obs[column])[0]
        n_groups = len(np.unique(codes))
        if not 1 < n_groups <= adata.n_obs / LEAST_SPOTS:
            continue
        if nearest is None:
            nearest = _nearest(positions)
        mixed = float((codes != codes[nearest]).mean())
        what = (
            f"adata.obs[{column!r}] has {n_groups} values ({listing(adata.obs[column].unique())}), but library_key is not "
            "given"
        )
        if mixed > MOST_MIXED:
            raise ValueError(
                f"{what}, and the nearest spot of {mixed:.0%} of the spots has another value: the sections lie over each "
                f"other. Pass library_key={str(column)!r}; if it is one section in which the values of the column mix, "
                "rename the column."
            )
        if column != batch_key:
            warnings.warn(
                f"{what}: all spots are taken for one section. Pass library_key={str(column)!r} if the values are sections.",
                UserWarning,
                stacklevel=stacklevel,
            )
            return


def _nearest(positions: NDArray[np.float64]) -> NDArray[np.intp]:
    """Nearest other spot of each, ``(n_spots,)``."""
    index = cKDTree(positions).query(positions, k=2)[1]
    # At one position with another spot, either of the two may come first.
    return np.where(index[:, 0] == np.arange(len(positions)), index[:, 1], index[:, 0])
