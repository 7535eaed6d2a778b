"""What the latent field sees of the spots: visible counts by block, depths and the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ._view import SpotView

BLOCK_ENTRIES = 1 << 19
"""Entries of a block: few enough that those of a step stay in the cache of a processor."""


class Spots(NamedTuple):
    """Visible entries of some spots."""

    counts: torch.Tensor
    """Counts, ``(n_spots, n_genes)``, 0 where hidden."""
    observed: torch.Tensor
    """True where an entry is visible, ``(n_spots, n_genes)``."""
    depth: torch.Tensor
    """Depth in counts, ``(n_spots,)``."""


class Tissue:
    """Some spots of a view, with the graph between them.

    Parameters
    ----------
    view
        What may be seen.
    rows
        Spots, ``(n_spots,)``.
    device
        Device of the tensors.
    """

    def __init__(self, view: SpotView, rows: NDArray[np.int64], device: torch.device) -> None:
        self._view, self.rows, self._device = view, rows, device
        self.n_spots, self.n_genes = len(rows), view.n_genes
        linked = (view.graph[rows][:, rows] > 0).astype(np.float32)
        linked = linked.maximum(linked.T)
        linked.setdiag(0)
        linked.eliminate_zeros()
        degree = np.asarray(linked.sum(axis=1), dtype=np.float32).ravel()
        self.laplacian = (sparse.diags(degree) - linked).tocsr().astype(np.float32)
        edges = sparse.triu(linked).tocoo()
        # Signed incidence of edges and spots, whose square is the Laplacian.
        n_edges = edges.nnz
        self.edges = np.stack([edges.row, edges.col], axis=1)
        rows_ = np.concatenate([edges.row, edges.col])
        signs = np.repeat(np.array([1.0, -1.0], dtype=np.float32), n_edges)
        incidence = sparse.csr_matrix((signs, (rows_, np.tile(np.arange(n_edges), 2))), shape=(self.n_spots, n_edges))
        self.degree = torch.from_numpy(degree).to(device)
        self.smooth = _on_device(self.laplacian, device)
        self.incidence = _on_device(incidence, device)

    def blocks(self) -> Iterator[tuple[slice, Spots]]:
        """Visible entries, some spots at a time, with the places of these spots."""
        size = max(1, BLOCK_ENTRIES // self.n_genes)
        for start in range(0, self.n_spots, size):
            place = slice(start, min(start + size, self.n_spots))
            rows = self.rows[place]
            arrays = self._view.counts[rows].toarray(), ~self._view.hidden[rows], self._view.depth[rows]
            yield place, Spots(*(torch.from_numpy(array).to(self._device) for array in arrays))


def in_strips(graph: sparse.csr_matrix) -> NDArray[np.int64]:
    """Order of the spots in which those near each other in the tissue are near, ``(n_spots,)``."""
    return reverse_cuthill_mckee(graph, symmetric_mode=False).astype(np.int64)


def _on_device(matrix: sparse.csr_matrix, device: torch.device) -> torch.Tensor:
    matrix = matrix.tocoo()
    places = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    # In this format, and said explicitly not to be checked, PyTorch warns of nothing.
    tensor = torch.sparse_coo_tensor(places, values, matrix.shape, check_invariants=False, is_coalesced=True)
    return tensor.to(device)
