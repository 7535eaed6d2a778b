"""Counts on disk, of which some genes are read, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Entries that are read at a time: about 25 MB.
BLOCK_ENTRIES = 1 << 21
# Rows of the first block, before it is known how many entries a row has.
_FIRST_ROWS = 512


class CountsOnDisk:
    """A matrix on disk, restricted to some of its genes; nothing is read before it is asked for.

    Parameters
    ----------
    matrix
        CSR or dense matrix of a backed or lazy AnnData, whose slices of rows are read when they are taken.
    where
        Its name for messages, such as ``adata.X``.
    genes
        Columns, ``(n_genes,)``; all by default.
    """

    def __init__(self, matrix: Any, where: str, genes: NDArray[np.int64] | None = None) -> None:
        self.matrix, self.where = matrix, where
        self.genes = np.arange(matrix.shape[1]) if genes is None else genes

    @property
    def shape(self) -> tuple[int, int]:
        """Spots and genes."""
        return self.matrix.shape[0], len(self.genes)

    def __getitem__(self, index: tuple[slice, NDArray]) -> CountsOnDisk:
        """All spots of some genes: ``counts[:, genes]``."""
        return CountsOnDisk(self.matrix, self.where, self.genes[index[1]])

    def blocks(self) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """First row and counts, ``(n_rows, n_genes)``, of one block of rows after the other."""
        start, rows, read, n_rows = 0, _FIRST_ROWS, 0, self.matrix.shape[0]
        while start < n_rows:
            block = self.matrix[start : min(start + rows, n_rows)]
            block = sparse.csr_matrix(block.compute() if hasattr(block, "compute") else block)
            yield start, block if len(self.genes) == block.shape[1] else block[:, self.genes]
            start, read = start + block.shape[0], read + block.nnz
            # What is dense was whole in memory for a moment.
            each = read / start if hasattr(self.matrix, "format") else self.matrix.shape[1]
            rows = int(np.clip(BLOCK_ENTRIES / max(each, 1), 1, n_rows))

    def to_memory(self) -> sparse.csr_matrix:
        """Counts of the genes, ``(n_spots, n_genes)``."""
        return sparse.vstack([block for _, block in self.blocks()], format="csr")

    def toarray(self) -> NDArray:
        """The same as an array."""
        return self.to_memory().toarray()


def counts_on_disk(adata: AnnData, layer: str | None) -> CountsOnDisk | None:
    """The counts of a backed or lazy AnnData, or None if they are in memory or missing.

    Parameters
    ----------
    adata
        Annotated spots.
    layer
        Layer with the counts; None takes ``X``.

    Raises
    ------
    TypeError
        If the counts are stored by gene.
    """
    if layer is not None and layer not in adata.layers:
        return None
    matrix, where = (adata.X, "adata.X") if layer is None else (adata.layers[layer], f"adata.layers[{layer!r}]")
    if matrix is None or sparse.issparse(matrix) or isinstance(matrix, np.ndarray | sparse.sparray):
        return None
    stored = getattr(matrix, "format", getattr(getattr(matrix, "_meta", None), "format", "csr"))
    if stored != "csr":
        raise TypeError(
            f"{where} is on disk and stored by gene ({stored}), so that no spots can be read alone; load it with "
            "adata = adata.to_memory(), or write it by spot, as a scipy.sparse.csr_matrix."
        )
    return CountsOnDisk(matrix, where)


def annotation_in_memory(adata: AnnData) -> AnnData:
    """What a backed or lazy AnnData has beside its matrices, in memory."""
    parts = {name: _loaded(getattr(adata, name)) for name in ("obs", "var", "uns", "obsm", "varm", "obsp", "varp")}
    return AnnData(**parts)


def _loaded(value: Any) -> Any:
    if isinstance(value, Mapping) and not hasattr(value, "to_memory"):
        return {key: _loaded(one) for key, one in value.items()}
    for read in ("to_memory", "compute"):
        if hasattr(value, read):
            return getattr(value, read)()
    return value
