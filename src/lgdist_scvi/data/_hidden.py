"""Which entries of the counts are hidden: none, all, or some."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._entries import Matrix

_BLOCK_BYTES = 1 << 26


class Hidden:
    """Hidden entries of a matrix, in memory that does not grow where none or all are hidden.

    Parameters
    ----------
    shape
        Shape of the matrix, ``(n_spots, n_genes)``.
    entries
        True where an entry is hidden, same shape; None where none is.
    """

    def __init__(self, shape: tuple[int, int], entries: sparse.csr_matrix | None = None) -> None:
        self.shape = shape
        n_hidden = 0 if entries is None else entries.nnz
        self.everything = n_hidden > 0 and n_hidden == math.prod(shape)
        self._entries = entries if n_hidden and not self.everything else None

    @classmethod
    def all(cls, shape: tuple[int, int]) -> Hidden:
        """All entries of a matrix."""
        hidden = cls(shape)
        hidden.everything = True
        return hidden

    @classmethod
    def unobserved(cls, observed: Matrix) -> Hidden:
        """Entries that `observed`, a boolean array or sparse matrix, marks False; read in blocks of rows."""
        step = max(1, _BLOCK_BYTES // max(1, observed.shape[1]))
        rows = observed.tocsr() if sparse.issparse(observed) else observed
        blocks = []
        for start in range(0, observed.shape[0], step):
            block = rows[start : start + step]
            blocks.append(sparse.csr_matrix(~(block.toarray() if sparse.issparse(block) else block)))
        return cls(observed.shape, sparse.vstack(blocks, format="csr"))

    @property
    def some(self) -> bool:
        """Whether part of the entries is hidden, neither none nor all."""
        return self._entries is not None

    @property
    def any(self) -> bool:
        """Whether an entry is hidden."""
        return self.some or self.everything

    def __getitem__(self, rows: NDArray) -> NDArray[np.bool_]:
        """Dense rows, ``(n_rows, n_genes)``."""
        if self._entries is not None:
            return self._entries[rows].toarray()
        return np.full((len(rows), self.shape[1]), self.everything)

    def of(self, rows: NDArray) -> Hidden:
        """The same of some rows alone."""
        if self._entries is not None:
            return Hidden((len(rows), self.shape[1]), self._entries[rows])
        return Hidden.all((len(rows), self.shape[1])) if self.everything else Hidden((len(rows), self.shape[1]))

    def __or__(self, entries: sparse.csr_matrix) -> Hidden:
        """Hide further entries."""
        if self.everything:
            return self
        return Hidden(self.shape, entries if self._entries is None else (self._entries + entries).astype(bool).tocsr())

    def with_spots(self, spots: NDArray[np.bool_]) -> Hidden:
        """Hide all entries of further spots, True in `spots` ``(n_spots,)``."""
        n_genes = self.shape[1]
        n_hidden = np.zeros(self.shape[0]) if self._entries is None else np.diff(self._entries.indptr)
        further = spots & (n_hidden < n_genes)
        if self.everything or not further.any():
            return self
        indptr = np.concatenate([[0], np.cumsum(n_genes * further)])
        indices = np.tile(np.arange(n_genes), further.sum())
        return self | sparse.csr_matrix((np.ones(len(indices), dtype=bool), indices, indptr), shape=self.shape)

    def new(self, entries: sparse.csr_matrix) -> sparse.csr_matrix:
        """Those of the entries that are not hidden yet."""
        if self.everything:
            return sparse.csr_matrix(self.shape, dtype=bool)
        return entries if self._entries is None else (entries > self._entries).tocsr()

    def times(self, values: NDArray) -> sparse.csr_matrix | NDArray:
        """Value of the spot, of `values` ``(n_spots,)``, at every hidden entry and 0 at the others.

        Returns
        -------
        Sparse ``(n_spots, n_genes)``, or dense ``(n_spots, 1)`` where all genes are alike.
        """
        if self._entries is None:
            return values[:, None] * self.everything
        return self._entries.multiply(values[:, None]).tocsr()

    def parts(self) -> list[NDArray]:
        """Arrays that differ where the entries do."""
        if self._entries is None:
            return [np.array([self.everything])]
        return [self._entries.indptr, self._entries.indices, self._entries.data]


def dense(matrix: Any) -> NDArray:
    """A sparse or dense matrix as an array."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
