"""Spots within numbers of hops along a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ._neighbors import graph_edges

if TYPE_CHECKING:
    from collections.abc import Sequence


def hop_weights(connectivities: sparse.spmatrix, hops: Sequence[int]) -> list[sparse.csr_matrix]:
    """Mark the pairs of spots within given numbers of hops.

    Parameters
    ----------
    connectivities
        Edges of shape ``(n_spots, n_spots)``; an edge in either direction links both spots.
    hops
        Numbers of hops, each at least 1.

    Returns
    -------
    For each number of hops a symmetric float32 matrix of shape ``(n_spots, n_spots)`` with 1 where two different spots
    are at most that many hops apart.

    Raises
    ------
    ValueError
        If a number of hops is below 1.
    """
    if any(hop < 1 for hop in hops):
        raise ValueError(f"hops={tuple(hops)} must all be at least 1.")
    row, col, _ = graph_edges(connectivities)
    shape = connectivities.shape
    step = sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, col)), shape=shape)
    # With the diagonal, the n-th power marks "at most n hops", because staying is allowed.
    step = (step + step.T + sparse.identity(shape[0], dtype=np.float32, format="csr")).tocsr()
    step.data[:] = 1
    reached, within = step, {1: _without_diagonal(step)}
    for hop in range(2, max(hops, default=1) + 1):
        reached = reached @ step
        reached.data[:] = 1
        if hop in hops:
            within[hop] = _without_diagonal(reached)
    return [within[hop] for hop in hops]


def _without_diagonal(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    off = row != matrix.indices
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row[off], minlength=matrix.shape[0]))])
    result = sparse.csr_matrix((matrix.data[off], matrix.indices[off], indptr), shape=matrix.shape)
    result.sort_indices()
    return result
