"""Checks of libraries: whether they have enough spots, and whether these are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._entries import listing
from ._neighbors import library_codes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

# Lengths are stored in single precision, and their squares are computed in double precision.
SHORTEST, LONGEST = 1e-30, 1e30


def check_library_sizes(adata: AnnData, library_key: str | None, n_neighbors: int) -> None:
    """Refuse libraries that are too small for neighbourhoods."""
    remedy = f"pass a smaller n_neighbors or drop them (n_neighbors={n_neighbors} needs {n_neighbors + 1} spots)"
    if library_key is None:
        if adata.n_obs <= n_neighbors:
            raise ValueError(f"adata has {adata.n_obs} spots, too few for their neighbourhoods; {remedy}.")
        return
    sizes = adata.obs[library_key].value_counts()
    small = sizes[(sizes > 0) & (sizes <= n_neighbors)]
    if len(small):
        named = [f"{name} ({size} spots)" for name, size in small.items()]
        raise ValueError(
            f"adata.obs[{library_key!r}] (library_key) has libraries too small for neighbourhoods: {listing(named)}; "
            f"{remedy}."
        )


def check_extent(adata: AnnData, positions: NDArray, spatial_key: str, library_key: str | None) -> None:
    """Refuse positions between which no distance can be computed, since all are the same or squares are out of range."""
    frame = pd.DataFrame(positions.astype(np.float64))
    codes = library_codes(None if library_key is None else adata.obs[library_key], adata.n_obs)
    parts = frame.groupby(codes)
    extent = (parts.max() - parts.min()).max(axis=1)
    for code, size in extent[parts.size() > 1].items():
        if not SHORTEST <= size <= LONGEST:
            where = (
                ""
                if library_key is None
                else f" of the library {adata.obs[library_key].iloc[np.argmax(codes == code)]!r}"
            )
            raise ValueError(
                f"adata.obsm[{spatial_key!r}] has positions{where} that are {size:.3g} apart at most, so that distances cannot be "
                "computed; store the positions on the tissue, in a unit such as micrometres or pixels."
            )
