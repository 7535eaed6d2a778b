"""Checks of the counts, entry by entry."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_label
from lgdist_scvi._constants import IMPUTED_SUFFIX, PACKAGE, STD_SUFFIX

from ._entries import count_matrix, count_observed, listing, observed_entries, observed_matrix, spot_listing
from ._neighbors import library_codes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from ._entries import Matrix

LARGEST = 2**31 - 1
"""Largest accepted count or depth."""
ROUNDED = 0.999
"""Share of the summed counts that a depth must reach; single precision may round it down."""


class Sums(NamedTuple):
    """Sums of the observed counts."""

    spots: NDArray[np.float64]
    """Sum of every spot, ``(n_spots,)``."""
    genes: NDArray[np.float64]
    """Sum of every gene, ``(n_genes,)``."""
    detected: NDArray[np.int64]
    """Number of observed entries of every gene with a count, ``(n_genes,)``."""


class Empty(NamedTuple):
    """Observed spots and genes that cannot be told from unobserved ones, or hardly."""

    where: str
    """Name of the matrix for messages, such as ``adata.X``."""
    spots: NDArray[np.bool_]
    """True for observed spots without a count whose depth is unknown, ``(n_spots,)``."""
    genes: NDArray[np.bool_]
    """True for observed genes without a count, ``(n_genes,)``."""


def check_counts(
    adata: AnnData,
    layer: str | None,
    observed_layer: str | None,
    size_factor_key: str | None,
    library_key: str | None,
    *,
    training: bool,
) -> Empty:
    """Check the counts, and find the observed spots and genes without one.

    Parameters
    ----------
    adata
        Annotated spots.
    layer
        Layer with the counts; None takes ``X``.
    observed_layer
        Boolean layer, True where the entry was observed; None when every entry was.
    size_factor_key
        Column of ``obs`` with the depth of the spots; 0 where a spot has no count. None takes the sum of their counts.
    library_key
        Column of ``obs`` with the libraries; None for one library.
    training
        Whether a model is to be trained on the counts.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a matrix is missing, unsupported or holds invalid values, or if all of it or of a library is without a count.
    """
    check_label(layer=layer, observed_layer=observed_layer)
    for name, what in {layer: "counts", observed_layer: "the mask of observed entries"}.items():
        _refuse_completed(adata, name, what)
    counts, where = count_matrix(adata, layer)
    observed = observed_matrix(adata, observed_layer)
    sums = check_count_values(adata, counts, observed, where)
    spot_sums, gene_sums = sums.spots, sums.genes
    spots_seen, genes_seen = count_observed(observed, adata.shape)
    if training and observed_layer is not None:
        _check_observed(observed_layer, where, sums, int(spots_seen.sum()), adata.shape)
    empty = (spot_sums == 0) & (spots_seen > 0)
    silent = (gene_sums == 0) & (genes_seen > 0)
    if silent.any() and training and not gene_sums.any():
        raise ValueError(
            f"{where} has no count in any observed entry, so there is nothing to learn from; name the layer with the raw "
            "counts as layer=..."
        )
    if size_factor_key is not None:
        # A spot of known depth tells by its zeros that its genes are rare.
        empty &= checked_depth(adata, size_factor_key, spot_sums) == 0
    _refuse_empty_libraries(adata, library_key, empty, spots_seen > 0, where)
    return Empty(where, empty, silent)


def warn_of_empty(
    adata: AnnData, empty: Empty, size_factor_key: str | None, *, training: bool, stacklevel: int
) -> None:
    """Say which spots and genes have no count, and what becomes of them.

    Parameters
    ----------
    adata
        Annotated spots.
    empty
        Result of :func:`check_counts`.
    size_factor_key
        Column of ``obs`` with the depth of the spots, if one is named.
    training
        Whether a model is to be trained on the counts. One that is trained knows genes from other spots.
    stacklevel
        As in :func:`warnings.warn`, from the caller of this function.
    """
    said = []
    if empty.spots.any():
        said.append(
            f"{empty.where} has no count for {spot_listing(adata, empty.spots)}, and no depth is known. They are completed "
            "from their surroundings, as if they were not observed; drop them with "
            "scanpy.pp.filter_cells(adata, min_counts=1) if that is unwanted."
        )
        if size_factor_key is None:
            said.append(
                "If adata holds a gene panel, pass the depth over the whole transcriptome as size_factor_key=... instead."
            )
    if empty.genes.any() and training:
        names = adata.var_names[empty.genes]
        said.append(
            f"{empty.where} has no count for {len(names)} gene{'s' if len(names) > 1 else ''} ({listing(names)}). They are "
            "completed as close to zero; drop them with scanpy.pp.filter_genes(adata, min_counts=1) if that is unwanted, "
            "or hide them in all spots of an observed_layer=... if they were not measured."
        )
    if said:
        warnings.warn(" ".join(said), UserWarning, stacklevel=stacklevel + 1)


def _refuse_empty_libraries(
    adata: AnnData, library_key: str | None, empty: NDArray[np.bool_], seen: NDArray[np.bool_], where: str
) -> None:
    """Refuse libraries in which nothing is known of any observed spot: they have no surroundings to be completed from."""
    codes = library_codes(None if library_key is None else adata.obs[library_key], adata.n_obs)
    lost = np.setdiff1d(codes[empty], codes[seen & ~empty])
    if len(lost) == 0:
        return
    if library_key is None:
        raise ValueError(f"{where} has no count in any observed spot; name the layer with the raw counts as layer=...")
    names = adata.obs[library_key][np.isin(codes, lost)].unique()
    raise ValueError(
        f"{where} has no count in any observed spot of the libraries {listing(names)} (adata.obs[{library_key!r}]); drop "
        "their spots, or name the layer with the raw counts as layer=..."
    )


def checked_depth(adata: AnnData, key: str, spot_sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depth of every spot, ``(n_spots,)``, refused if it is less than the counts of the spot or beyond reason."""
    depth = adata.obs[key].to_numpy(dtype=np.float64)
    bad = (depth < ROUNDED * spot_sums) | (depth > LARGEST)
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] (size_factor_key) is less than the counts of the spot, or too large for a depth, for "
            f"{spot_listing(adata, bad)}; it must be the depth in counts over the whole transcriptome, such as "
            "adata.obs['total_counts'] of scanpy.pp.calculate_qc_metrics before gene selection, not a relative size "
            "factor."
        )
    return depth


def _check_observed(observed_layer: str, where: str, sums: Sums, n_observed: int, shape: tuple[int, int]) -> None:
    """Refuse a mask that hides everything or is the counts, and warn of one that hides all zeros."""
    name = f"adata.layers[{observed_layer!r}] (observed_layer)"
    if n_observed == 0:
        raise ValueError(
            f"{name} is False everywhere, so there is nothing to learn from; store True where the entry was observed."
        )
    if sums.detected.sum() < n_observed or n_observed == shape[0] * shape[1]:
        return
    if sums.spots.sum() == n_observed:
        raise ValueError(
            f"{name} equals the counts in {where}, so that no zero would be an observation; store True where the entry was "
            "observed, zeros included, or leave out observed_layer=... if all were."
        )
    warnings.warn(
        f"{name} is True only where there is a count, and hides all zeros. An observed zero is evidence of a low rate: leave out "
        "observed_layer=... if all entries were measured.",
        UserWarning,
        stacklevel=5,
    )


def _refuse_completed(adata: AnnData, layer: str | None, what: str) -> None:
    """Refuse layers written by a completion: they are not measurements."""
    for suffix in ("", IMPUTED_SUFFIX, STD_SUFFIX):
        source = (layer if isinstance(layer, str) else "").removesuffix(suffix)
        written = adata.uns.get(source)
        if isinstance(written, Mapping) and written.get("package") == PACKAGE:
            raise ValueError(
                f"adata.layers[{layer!r}] was written by a completion (see adata.uns[{source!r}]) and cannot serve as {what}; "
                "name the layer with the measured values."
            )


def check_count_values(adata: AnnData, counts: Matrix, observed: Matrix | None, where: str) -> Sums:
    """Check that observed entries are counts, and sum them.

    Parameters
    ----------
    adata
        Annotated spots, for the names.
    counts
        Matrix of shape ``(n_spots, n_genes)``.
    observed
        Mask of the same shape; None when every entry was observed.
    where
        Name of the matrix for messages, such as ``adata.X``.

    Raises
    ------
    ValueError
        If observed entries are NaN, infinite, negative, not whole numbers or too large for counts.
    """
    spot_sums, gene_sums = np.zeros(adata.n_obs), np.zeros(adata.n_vars)
    detected = np.zeros(adata.n_vars, dtype=np.int64)
    faults: dict[str, list] = {
        "NaN or infinite": [],
        "negative": [],
        "not whole numbers": [],
        "too large for counts": [],
    }
    totals = dict.fromkeys(faults, 0)
    for row, col, value in observed_entries(counts, observed):
        if value.dtype.kind == "f":
            finite = np.isfinite(value)
            masks: tuple[NDArray | None, ...] = (
                ~finite,
                value < 0,
                finite & (value != np.floor(value)),
                finite & (value > LARGEST),
            )
        else:
            masks = (None, value < 0, None, value > LARGEST)
        for fault, mask in zip(faults, masks, strict=True):
            if mask is not None and mask.any():
                totals[fault] += int(mask.sum())
                bad = np.flatnonzero(mask)[:5]
                faults[fault] += [
                    f"spot {adata.obs_names[i]!r}, gene {adata.var_names[j]!r}: {v}"
                    for i, j, v in zip(row[bad], col[bad], value[bad], strict=True)
                ]
        detected += np.bincount(col, minlength=adata.n_vars)
        weights = value.astype(np.float64)
        spot_sums += np.bincount(row, weights, minlength=adata.n_obs)
        gene_sums += np.bincount(col, weights, minlength=adata.n_vars)
    for fault, culprits in faults.items():
        if culprits:
            corrected = ""
            if fault == "not whole numbers":
                corrected = (
                    " Counts that were destriped or corrected for ambient RNA are fractions: pass those before the correction; "
                    "what stripes do to all genes alike is in the depth of a bin."
                )
                if _whole_in_raw(adata):
                    corrected += (
                        " adata.raw holds whole numbers: adata.layers['counts'] = adata.raw[:, adata.var_names].X."
                    )
            raise ValueError(
                f"{where} has {totals[fault]} observed entries that are {fault} ({'; '.join(culprits[:5])}). Pass "
                f"the layer with the raw counts as layer=...; hide entries without a measurement with observed_layer=...{corrected}"
            )
    return Sums(spot_sums, gene_sums, detected)


def _whole_in_raw(adata: AnnData) -> bool:
    """Whether ``adata.raw`` seems to have the counts of all genes."""
    if adata.raw is None or not adata.var_names.isin(adata.raw.var_names).all():
        return False
    few = adata.raw.X[:100]
    values = few.data if sparse.issparse(few) else np.asarray(few)
    return bool(np.isfinite(values).all() and (values >= 0).all() and (values == np.floor(values)).all())
