"""Image embeddings of spots from tiles that another tool has embedded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_flag, check_name, check_positive
from lgdist_scvi._constants import PACKAGE, Keys
from lgdist_scvi.data._entries import listing, spot_listing
from lgdist_scvi.data._regions import annotating_table, regions
from lgdist_scvi.data._slide_sources import placed

from ._images import check_key, standardized

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def tile_embeddings(
    adata: AnnData,
    tiles: SpatialData | Mapping[str, SpatialData],
    table_key: str,
    *,
    library_key: str | None = None,
    spatial_key: str = "spatial",
    scale: float = 1.0,
    standardize: bool = True,
    key_added: str = Keys.IMAGE,
) -> None:
    """Take image embeddings of spots from tiles of the slide that another tool has embedded, such as LazySlide.

    Each spot takes the mean features of the tiles that its centre lies in. Writes ``obsm[key_added]``, float32 of shape
    ``(n_spots, n_features)``, and its settings to ``uns[key_added]``, for
    :meth:`LGDiST.setup_anndata(..., image_key=key_added) <lgdist_scvi.LGDiST.setup_anndata>`.

    Parameters
    ----------
    adata
        Annotated spots, changed in place.
    tiles
        SpatialData object of a slide (a ``WSIData`` is one), or a dictionary of these by library.
    table_key
        Table with the features of the tiles, which annotates their outlines; in LazySlide ``"MODEL_tiles"``.
    library_key
        Column of ``obs`` with the library of every spot; needed for a dictionary.
    spatial_key
        Key of the positions (x, y) in ``obsm``.
    scale
        Units of the outlines per unit of the positions; 1 where both are pixels of the full-resolution image.
    standardize
        As in :func:`~lgdist_scvi.pp.image_embeddings`.
    key_added
        Key in ``obsm`` and ``uns``.

    Raises
    ------
    KeyError, TypeError, ValueError
        If table, outlines and positions do not fit; the message names the remedy.

    Notes
    -----
    Spots in no tile get NaN, which the model takes as "no image"; a warning counts them.

    Examples
    --------
    >>> lgdist_scvi.pp.tile_embeddings(adata, slide, "uni2_tiles")
    >>> adata.obsm["X_image"].shape == (adata.n_obs, slide.tables["uni2_tiles"].n_vars)
    True
    """
    check_name(key_added=key_added)
    check_positive(scale=scale)
    check_flag(standardize=standardize)
    check_key(adata, key_added)
    centres = placed(adata, spatial_key, library_key) * scale
    slides = _slides(adata, tiles, library_key)
    found = {name: (rows, _at(slide, table_key, name, centres[rows])) for name, (rows, slide) in slides.items()}
    widths = {name: values.shape[1] for name, (_, values) in found.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"The tiles have {widths} features; embed all slides with one model.")
    embeddings = np.full((adata.n_obs, next(iter(widths.values()))), np.nan, dtype=np.float32)
    for rows, values in found.values():
        inside = np.isfinite(values).all(axis=1)
        embeddings[rows[inside]] = standardized(values[inside]) if standardize else values[inside]
    if (outside := np.isnan(embeddings[:, 0])).any():
        warnings.warn(
            f"No tile contains {spot_listing(adata, outside)}; the model takes them as without an image.", stacklevel=2
        )
    adata.obsm[key_added] = embeddings
    adata.uns[key_added] = {
        "package": PACKAGE,
        "version": version(PACKAGE),
        "model": table_key,
        "standardize": standardize,
        "libraries": list(slides),
    }


def _slides(
    adata: AnnData, tiles: SpatialData | Mapping[str, SpatialData], library_key: str | None
) -> dict[str, tuple[NDArray[np.int64], SpatialData]]:
    """Rows of the spots of each slide, and the slide."""
    if isinstance(tiles, Mapping) != (library_key is not None):
        raise ValueError(
            "Pass several slides as a dictionary by library, with library_key=...; one slide without library_key."
        )
    if not isinstance(tiles, Mapping):
        return {"section": (np.arange(adata.n_obs), tiles)}
    of_spot = adata.obs[library_key].astype(str).to_numpy()
    if unknown := sorted(set(tiles) - set(of_spot)):
        raise KeyError(
            f"tiles names {listing(unknown)}, which adata.obs[{library_key!r}] does not (found: "
            f"{listing(sorted(set(of_spot)))}); correct the names."
        )
    return {name: (np.flatnonzero(of_spot == name), slide) for name, slide in tiles.items()}


def _at(slide: SpatialData, table_key: str, library: str, centres: NDArray) -> NDArray[np.float32]:
    """Mean features of the tiles around each centre, ``(n_spots, n_features)``; NaN without a tile."""
    import shapely

    table, names, _ = annotating_table(slide, table_key)
    parts = list(regions(slide, table, names))
    if not parts:
        raise ValueError(f"The table {table_key!r} of {library!r} annotates no tile; embed the tiles first.")
    rows = np.concatenate([part.rows for part in parts])
    outlines = np.concatenate([part.outlines for part in parts])
    features = table.X.toarray() if sparse.issparse(table.X) else np.asarray(table.X)
    features = features[rows].astype(np.float32)
    if not np.isfinite(features).all():
        raise ValueError(
            f"The table {table_key!r} of {library!r} has features that are not finite; embed the tiles again."
        )
    spot, tile = shapely.STRtree(outlines).query(shapely.points(centres), predicate="intersects")
    if not len(spot):
        extents = " to ".join(str(corner.round(1)) for corner in (centres.min(axis=0), centres.max(axis=0)))
        raise ValueError(
            f"No spot of {library!r} lies in a tile: positions times scale are within {extents}, tiles within "
            f"{shapely.total_bounds(outlines).round(1)}; both must be in pixels of one image, or scale=... must lead from one to the other."
        )
    members = sparse.csr_matrix((np.ones(len(spot), dtype=np.float32), (spot, tile)), (len(centres), len(outlines)))
    number = members.getnnz(axis=1)[:, None]
    return np.where(number > 0, members @ features / np.maximum(number, 1), np.nan).astype(np.float32)
