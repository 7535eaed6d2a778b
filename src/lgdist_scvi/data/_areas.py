"""Areas of tissue whose spots are taken together: groups of spots, and patches of neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from lgdist_scvi._checks import check_label

from ._entries import listing

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def groups_of(adata: AnnData, groupby: str) -> tuple[pd.Index, sparse.csr_matrix]:
    """Names of the groups of a column of `obs`, and the spots of each, ``(n_groups, n_spots)``; spots without a value are in none.

    Raises
    ------
    KeyError, TypeError, ValueError
        If there is no such column, or no group in it.
    """
    check_label(groupby=groupby)
    if groupby not in adata.obs:
        raise KeyError(
            f"adata.obs has no column {groupby!r} (found: {listing(list(adata.obs.columns))}); correct groupby=..."
        )
    column = adata.obs[groupby].astype("category").cat.remove_unused_categories().cat
    spot = np.flatnonzero(column.codes >= 0)
    if not len(spot):
        raise ValueError(f"adata.obs[{groupby!r}] names no group; fill it in.")
    members = sparse.csr_matrix(
        (np.ones(len(spot), dtype=np.float32), (column.codes.to_numpy()[spot], spot)),
        shape=(len(column.categories), adata.n_obs),
    )
    return pd.Index(column.categories.astype(str), name=groupby), members


def patches_around(positions: NDArray, section: NDArray[np.intp], n_spots: int) -> sparse.csr_matrix:
    """Each spot with those nearest to it in its section.

    Parameters
    ----------
    positions
        Positions, ``(n_spots, n_dimensions)``, in any unit.
    section
        Number of the section of each spot, ``(n_spots,)``.
    n_spots
        Spots of a patch; fewer in a section that has fewer.

    Returns
    -------
    Matrix ``(n_spots, n_spots)``, 1 for the spots of a patch.
    """
    rows, columns = [], []
    for one in np.unique(section):
        spots = np.flatnonzero(section == one)
        size = min(n_spots, len(spots))
        near = cKDTree(positions[spots]).query(positions[spots], np.arange(1, size + 1))[1]
        rows.append(np.repeat(spots, size))
        columns.append(spots[near].ravel())
    row, column = np.concatenate(rows), np.concatenate(columns)
    return sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, column)), shape=(len(section), len(section)))


def disjoint_patches(
    positions: NDArray, section: NDArray[np.intp], n_spots: int, random: np.random.Generator
) -> sparse.csr_matrix:
    """Patches around spots chosen at random that share no spot, ``(n_patches, n_spots)``."""
    patches = patches_around(positions, section, n_spots)
    free, chosen = np.ones(len(section), dtype=bool), []
    for centre in random.permutation(len(section)):
        members = patches.indices[patches.indptr[centre] : patches.indptr[centre + 1]]
        if len(members) == n_spots and free[members].all():
            free[members] = False
            chosen.append(centre)
    return patches[np.array(chosen, dtype=np.int64)]
