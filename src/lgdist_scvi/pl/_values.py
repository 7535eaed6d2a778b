"""Measured values that plots show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.data._entries import count_matrix, observed_entries, observed_matrix

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def registered(adata: AnnData, layer: str, name: str, given: str | None) -> str | None:
    """An argument of a plot; if it is not given, that of the registration of the model that wrote a completed layer."""
    written = adata.uns.get(layer)
    if given is not None or not isinstance(written, Mapping):
        return given
    return written.get("registered", {}).get(name)


def dense_part(matrix: Any, spots: NDArray[np.intp], genes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Dense values of some rows and columns of an array or sparse matrix."""
    part = matrix[:, genes][spots]
    return np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)


def measured_values(
    adata: AnnData,
    layer: str | None,
    observed_layer: str | None,
    size_factor_key: str | None,
    spots: NDArray[np.intp],
    genes: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Log-normalised counts of shape ``(n_spots, n_genes)``, NaN where nothing was observed."""
    counts, _ = count_matrix(adata, layer)
    observed = observed_matrix(adata, observed_layer)
    if size_factor_key is None:
        depth = np.zeros(adata.n_obs)
        for row, _, value in observed_entries(counts, observed):
            depth += np.bincount(row, weights=value, minlength=adata.n_obs)
    elif size_factor_key in adata.obs:
        depth = adata.obs[size_factor_key].to_numpy(dtype=np.float64)
    else:
        raise KeyError(
            f"adata.obs[{size_factor_key!r}] is missing (found: {list(adata.obs)}); correct size_factor_key=..."
        )
    depth = np.where(depth > 0, depth, np.nan)[spots, None]
    values = np.log1p(dense_part(counts, spots, genes) / depth * TARGET_SUM)
    return values if observed is None else np.where(dense_part(observed, spots, genes) > 0, values, np.nan)
