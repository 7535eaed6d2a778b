"""Moran's I of many genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lgdist_scvi.data._entries import observed_entries
from lgdist_scvi.data._on_disk import CountsOnDisk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lgdist_scvi.data._entries import Matrix

# Dense values of one chunk of genes: 64 MB in float64.
CHUNK_ENTRIES = 1 << 23


def log_expression(
    counts: Matrix, observed: Matrix | None, genes: NDArray[np.int64], depth: NDArray, target_sum: float
) -> tuple[sparse.csc_matrix, Matrix | None]:
    """Log-normalised observed entries of some genes, and their mask, in formats that slice quickly by gene."""
    if isinstance(counts, CountsOnDisk):
        counts, genes = counts[:, genes], np.arange(len(genes))
    rows, cols, values = [], [], []
    for row, col, value in observed_entries(counts, observed):
        rows.append(row.astype(np.int32))
        cols.append(col.astype(np.int32))
        values.append(np.log1p(value / depth[row] * target_sum).astype(np.float32))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols)))
    mask = observed if observed is None or not sparse.issparse(observed) else observed.tocsc()
    return sparse.csc_matrix(entries, shape=counts.shape)[:, genes], None if mask is None else mask[:, genes]


def moran(
    values: sparse.csc_matrix, mask: Matrix | None, graph: sparse.csr_matrix, codes: NDArray
) -> NDArray[np.float64]:
    """Moran's I of every gene, averaged over the libraries in which it was observed.

    Parameters
    ----------
    values
        Observed expression, shape ``(n_spots, n_genes)``.
    mask
        Observed entries of the same shape; None when all were.
    graph
        Spatial graph with weights of 1, shape ``(n_spots, n_spots)``.
    codes
        Library of every spot, shape ``(n_spots,)``.

    Returns
    -------
    Array of shape ``(n_genes,)``.
    """
    total, libraries = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for code in np.unique(codes):
        spots = np.flatnonzero(codes == code)
        weights = graph[spots][:, spots].astype(np.float64)
        degree = np.asarray(weights.sum(axis=1)).ravel()
        weights = (sparse.diags(1 / np.maximum(degree, 1)) @ weights).tocsr()
        x = values[spots] if len(np.unique(codes)) > 1 else values
        step = max(1, CHUNK_ENTRIES // len(spots))
        for start in range(0, values.shape[1], step):
            genes = slice(start, start + step)
            dense = x[:, genes].toarray().astype(np.float64)
            seen = None
            if mask is not None:
                block = mask[:, genes]
                seen = (block.toarray() if sparse.issparse(block) else block)[spots].astype(np.float64)
            score = _moran_dense(dense, seen, weights)
            defined = ~np.isnan(score)
            total[genes] += np.where(defined, score, 0)
            libraries[genes] += defined
    return total / np.maximum(libraries, 1)


def _moran_dense(x: NDArray, seen: NDArray | None, weights: sparse.csr_matrix) -> NDArray[np.float64]:
    """Moran's I of each gene in one library; 0 if constant, NaN if nothing was observed."""
    if seen is None:
        n_seen, pairs = float(len(x)), float(weights.sum())
        z = x - x.mean(axis=0)
    else:
        n_seen = seen.sum(axis=0)
        pairs = (seen * (weights @ seen)).sum(axis=0)
        z = (x - x.sum(axis=0) / np.maximum(n_seen, 1)) * seen
    covariance = (z * (weights @ z)).sum(axis=0)
    variance = (z**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (covariance / pairs) / (variance / n_seen)
    # Rounding leaves some variance in a constant gene.
    constant = (variance <= 1e-12 * np.maximum((x**2).sum(axis=0), 1)) | (pairs == 0)
    return np.where(n_seen == 0, np.nan, np.where(constant, 0.0, score))
