"""Checks of the registered data, run before anything is computed from them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._checks import check_whole

from ._controls import warn_of_controls
from ._counts import check_counts, warn_of_empty
from ._entries import listing, spot_listing
from ._genes import check_type
from ._libraries import check_extent, check_library_sizes
from ._missing import refuse_several_missing
from ._names import check_sortable
from ._reach import check_reach
from ._sections import SECTION_COLUMNS, check_sections

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SHARED_POSITIONS = 0.01
FEW_SPOTS = 100


def validate_setup(
    adata: AnnData,
    *,
    layer: str | None,
    spatial_key: str,
    library_key: str | None,
    batch_key: str | None,
    image_key: str | None,
    observed_layer: str | None,
    size_factor_key: str | None,
    target_genes_key: str | None,
    n_neighbors: int,
    max_distance: float | None = None,
    query: bool = False,
) -> None:
    """Check everything that ``setup_anndata`` is about to register.

    Counts are read only where `observed_layer` is True. Matrices are read in blocks, never densified whole.

    Parameters
    ----------
    adata
        Annotated spots.
    layer
        Layer with the counts; None takes ``X``.
    spatial_key
        Key of the positions in ``obsm``.
    library_key
        Column of ``obs`` with the libraries.
    batch_key
        Column of ``obs`` with the batches.
    image_key
        Key of the image embeddings in ``obsm``.
    observed_layer
        Boolean layer, True where the entry was observed.
    size_factor_key
        Column of ``obs`` with the depth of the spots.
    target_genes_key
        Boolean column of ``var``.
    n_neighbors
        Neighbours per spot.
    max_distance
        Largest distance of neighbours.
    query
        True for data handed to a trained model, which may have few spots.

    Raises
    ------
    KeyError
        If a named key is missing.
    TypeError
        If an object has an unsupported type.
    ValueError
        If values are invalid; the message names the first culprits and the remedy.
    """
    check_container(adata)
    check_whole(1, n_neighbors=n_neighbors)
    refuse_several_missing(
        adata,
        layers={"layer": layer, "observed_layer": observed_layer},
        obsm={"spatial_key": spatial_key, "image_key": image_key},
        obs={"library_key": library_key, "batch_key": batch_key, "size_factor_key": size_factor_key},
    )
    check_group_names(adata, library_key, "library_key")
    check_group_names(adata, batch_key, "batch_key")
    positions = check_sections_apart(adata, spatial_key, library_key)
    if not query:
        check_reach(positions, max_distance, spatial_key)
        warn_of_controls(adata, stacklevel=3)
    if library_key is None and not query:
        check_sections(adata, positions, batch_key, stacklevel=4)
    if size_factor_key is not None:
        check_size_factor(adata, size_factor_key)
    if image_key is not None:
        _check_image(adata, image_key, query=query)
    if target_genes_key is not None and not query:
        _check_target_genes(adata, target_genes_key)
    if not query:
        check_library_sizes(adata, library_key, n_neighbors)
    empty = check_counts(adata, layer, observed_layer, size_factor_key, library_key, training=not query)
    # New data is checked two calls further down than a setup.
    warn_of_empty(adata, empty, size_factor_key, training=not query, stacklevel=5 if query else 3)
    if adata.n_obs < FEW_SPOTS and not query:
        warnings.warn(
            f"adata has only {adata.n_obs} spots; fewer than {FEW_SPOTS} are hardly enough to train a model.",
            UserWarning,
            stacklevel=3,
        )


def validate_places(
    adata: AnnData, spatial_key: str, library_key: str | None, image_key: str, n_features: int
) -> NDArray[np.float32]:
    """Check places where expression is to be predicted from the image.

    Parameters
    ----------
    adata
        Annotated places.
    spatial_key, image_key
        Keys of positions and image embeddings in ``obsm``.
    library_key
        Column of ``obs`` with the libraries.
    n_features
        Features of an embedding.

    Returns
    -------
    Image embeddings, ``(n_places, n_features)``.

    Raises
    ------
    KeyError
        If a key is missing.
    ValueError
        If a place has no image, or the number of image features differs from the model.
    """
    check_type(adata)
    check_group_names(adata, library_key, "library_key")
    check_sections_apart(adata, spatial_key, library_key)
    _check_image(adata, image_key, query=True)
    image = np.asarray(adata.obsm[image_key], dtype=np.float32)
    if image.shape[1] != n_features:
        raise ValueError(
            f"adata.obsm[{image_key!r}] has {image.shape[1]} image features, but the model was trained with "
            f"{n_features}; compute the embeddings in the same way."
        )
    absent = np.asarray(np.isnan(image).all(axis=1))
    if absent.any():
        raise ValueError(
            f"adata.obsm[{image_key!r}] has no image for {spot_listing(adata, absent)}; drop these places."
        )
    return image


def check_container(adata: AnnData, *, views: bool = False) -> None:
    """Refuse an AnnData that is on disk or empty, or whose names are not unique; also a view, unless `views` are allowed."""
    check_type(adata)
    if adata.isbacked:
        raise ValueError(
            "adata is backed by a file, but only data in memory can be used; use adata = lgdist_scvi.pp.select_genes(adata), which "
            "reads the genes it selects, or adata = adata.to_memory()."
        )
    if adata.is_view and not views:
        raise ValueError("adata is a view of another AnnData; use adata = adata.copy().")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata has shape {adata.shape}; pass data with at least one spot and one gene.")
    for names, axis, what in ((adata.obs_names, "obs", "spots"), (adata.var_names, "var", "genes")):
        if not names.is_unique:
            duplicated = names[names.duplicated()].unique()
            raise ValueError(
                f"adata.{axis}_names has {len(duplicated)} names that occur more than once, {what} "
                f"{listing(duplicated)}; use adata.{axis}_names_make_unique()."
            )


def check_obs_column(adata: AnnData, key: str | None, argument: str) -> None:
    """Refuse a column of ``obs`` that is missing or has missing values."""
    if key is None:
        return
    if key not in adata.obs:
        raise KeyError(f"adata.obs[{key!r}] is missing (found: {list(adata.obs.columns)}); correct {argument}=...")
    absent = adata.obs[key].isna().to_numpy()
    if absent.any():
        raise ValueError(
            f"adata.obs[{key!r}] ({argument}) is NaN for {spot_listing(adata, absent)}; fill it in or drop the spots "
            f"with adata = adata[adata.obs[{key!r}].notna()].copy()."
        )


def check_group_names(adata: AnnData, key: str | None, argument: str) -> None:
    """Check a column that groups spots."""
    check_obs_column(adata, key, argument)
    if key is not None:
        check_sortable(adata.obs[key], key, argument)


def check_positions(adata: AnnData, spatial_key: str) -> NDArray[np.float64]:
    """Positions of the spots, ``(n_spots, 2)`` or ``(n_spots, 3)``, refused if they are missing or not finite."""
    positions = obsm_array(adata, spatial_key, "spatial_key", "positions")
    if positions.ndim != 2 or positions.shape[0] != adata.n_obs or positions.shape[1] not in (2, 3):
        raise ValueError(
            f"adata.obsm[{spatial_key!r}] has shape {positions.shape}; positions must be ({adata.n_obs}, 2) or "
            f"({adata.n_obs}, 3), x and y (and z) of every spot."
        )
    bad = ~np.isfinite(positions).all(axis=1)
    if bad.any():
        raise ValueError(
            f"adata.obsm[{spatial_key!r}] has NaN or infinite positions for {spot_listing(adata, bad)}; correct them "
            f"or drop the spots with adata = adata[np.isfinite(adata.obsm[{spatial_key!r}]).all(axis=1)].copy()."
        )
    return positions


def check_sections_apart(adata: AnnData, spatial_key: str, library_key: str | None) -> NDArray[np.float64]:
    """Positions of the spots, as :func:`check_positions`; refused if sections seem to overlap or to have no extent."""
    positions = check_positions(adata, spatial_key)
    check_extent(adata, positions, spatial_key, library_key)
    _check_shared_positions(adata, positions, library_key)
    return positions


def _check_shared_positions(adata: AnnData, positions: NDArray, library_key: str | None) -> None:
    frame = pd.DataFrame(positions)
    if library_key is not None:
        frame["library"] = pd.factorize(adata.obs[library_key])[0]
    shared = frame.duplicated(keep=False).to_numpy()
    if not shared.any():
        return
    what = f"{spot_listing(adata, shared)} share their position with another spot"
    if library_key is None:
        where = frame[shared].groupby(list(frame.columns), sort=False).ngroup().to_numpy()
        for column in adata.obs.columns:
            if str(column).lower() in SECTION_COLUMNS:
                labels = pd.factorize(adata.obs[column])[0][shared]
                if (pd.Series(labels).groupby(where).nunique() > 1).any():
                    raise ValueError(
                        f"{what}, in different categories of adata.obs[{column!r}]: the sections overlap. "
                        f"Pass library_key={str(column)!r}."
                    )
        if shared.mean() > MAX_SHARED_POSITIONS:
            raise ValueError(
                f"{what}: several sections seem to overlap. Pass library_key=..., the obs column with the section of "
                "each spot; if there is only one section, merge the spots at the same position."
            )
    warnings.warn(f"{what}; they are treated as each other's nearest neighbours.", UserWarning, stacklevel=5)


def check_size_factor(adata: AnnData, key: str) -> None:
    """Refuse a column of depths that is not of numbers of at least 0."""
    check_obs_column(adata, key, "size_factor_key")
    column = adata.obs[key]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise TypeError(
            f"adata.obs[{key!r}] has dtype {column.dtype}; size_factor_key must name a column of numbers, the depth."
        )
    depth = column.to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(depth) & (depth >= 0))
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] (size_factor_key) is negative, NaN or infinite for {spot_listing(adata, bad)}; "
            "store their depth over the whole transcriptome, or drop the spots."
        )


def _check_image(adata: AnnData, key: str, *, query: bool) -> None:
    image = obsm_array(adata, key, "image_key", "image embeddings")
    if image.ndim != 2 or image.shape[0] != adata.n_obs or image.shape[1] == 0:
        raise ValueError(
            f"adata.obsm[{key!r}] has shape {image.shape}; image embeddings must be ({adata.n_obs}, n_features), one "
            "row per spot and at least one column. Compute them for exactly these spots."
        )
    step = max(1, (1 << 22) // image.shape[1])
    blocks = [image[start : start + step] for start in range(0, len(image), step)]
    finite = np.concatenate([np.isfinite(block).all(axis=1) for block in blocks])
    absent = np.concatenate([np.isnan(block).all(axis=1) for block in blocks])
    bad = ~finite & ~absent
    if bad.any():
        raise ValueError(
            f"adata.obsm[{key!r}] has NaN or infinite values in the image embeddings of {spot_listing(adata, bad)}; "
            "recompute them, or set the whole row to NaN for a spot without an image."
        )
    if absent.all() and not query:
        raise ValueError(
            f"adata.obsm[{key!r}] has only NaN, so no spot has an image; leave out image_key=..., or compute the "
            "embeddings with lgdist_scvi.pp.image_embeddings."
        )


def _check_target_genes(adata: AnnData, key: str) -> None:
    if key not in adata.var:
        raise KeyError(
            f"adata.var[{key!r}] is missing (found: {list(adata.var.columns)}); correct target_genes_key=... or "
            "compute it with lgdist_scvi.pp.select_genes."
        )
    column = adata.var[key]
    if not pd.api.types.is_bool_dtype(column) or column.isna().any():
        raise ValueError(
            f"adata.var[{key!r}] (target_genes_key) has dtype {column.dtype} or missing values; it must be boolean, "
            "True for target genes."
        )
    if not column.any():
        raise ValueError(f"adata.var[{key!r}] (target_genes_key) is False for all genes; mark at least one as target.")


def obsm_array(adata: AnnData, key: str, argument: str, what: str) -> NDArray:
    """An array of numbers in ``obsm``, as it is stored; refused if it is missing or of another kind."""
    if key not in adata.obsm:
        hint = ""
        if argument == "spatial_key" and "spatialdata_attrs" in adata.uns:
            hint = ", or, since the positions of this table are in its SpatialData object, pass that object"
        raise KeyError(
            f"adata.obsm[{key!r}] ({what}) is missing (found: {sorted(adata.obsm)}); correct {argument}=...{hint}"
        )
    stored = adata.obsm[key]
    if sparse.issparse(stored):
        raise TypeError(f"adata.obsm[{key!r}] ({what}) is sparse; store it as a dense array with .toarray().")
    if isinstance(stored, np.ma.MaskedArray):
        raise TypeError(
            f"adata.obsm[{key!r}] ({what}) is a masked array, whose mask would be lost; store an array with .filled(numpy.nan)."
        )
    array = np.asarray(stored)
    if array.dtype.kind not in "buif":
        raise TypeError(f"adata.obsm[{key!r}] ({what}) has dtype {array.dtype}; convert it to a numeric dtype.")
    return array
