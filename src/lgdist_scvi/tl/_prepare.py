"""Data on which a method is run so that its result can be audited."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._checks import check_between, check_label, check_seed, check_whole
from lgdist_scvi._constants import PACKAGE, AuditKeys, Keys
from lgdist_scvi._memory import require_memory
from lgdist_scvi.data._counts import check_counts
from lgdist_scvi.data._entries import count_matrix, listing, spot_listing
from lgdist_scvi.data._validation import check_container, check_positions, check_size_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_COUNTS = 100
"""Counts from which a gene says something: tests of a decoy that is hardly counted find nothing."""


def prepare_audit(
    adata: AnnData,
    layer: str | None = None,
    *,
    fraction: float = 0.5,
    n_decoys: int = 50,
    size_factor_key: str | None = None,
    spatial_key: str = "spatial",
    seed: int = 0,
) -> AnnData:
    """Hold out molecules and add decoy genes, for an audit of a method.

    Each molecule is kept with probability `fraction`. Run any method on the result, store its completed values of all
    genes in a layer, and pass that to :func:`lgdist_scvi.tl.audit`.

    A decoy has the abundance of a real gene and no pattern: its counts are Poisson around the depth of the spot times its
    share of the section, and its molecules are held out like the others. So what a completed decoy shows is made by the
    method. Decoys are genes with many molecules; choose genes *before* this call, since a selection of variable genes
    would drop them. Control features of a panel, which :func:`lgdist_scvi.pp.drop_controls` keeps in ``obsm``, are decoys too:
    real ones, whose expression is zero.

    Parameters
    ----------
    adata
        Annotated spots.
    layer
        Layer with the counts; None takes ``X``.
    fraction
        Share of the molecules that are given to the method.
    n_decoys
        Number of decoy genes that are drawn; 0 for none.
    size_factor_key
        Column of ``obs`` with the depth of the spots over the whole transcriptome, for a panel of genes; by default the
        depth is the sum of the counts.
    spatial_key
        Key of the positions in ``obsm``.
    seed
        Seed of the molecules and the decoys.

    Returns
    -------
    New AnnData of the same spots, real genes first. ``X`` and ``layers["counts"]`` hold the given counts,
    ``layers["held_out"]`` the others, ``obs["depth"]`` and ``obs["held_out_depth"]`` the depths of both, decoys included,
    and ``var["decoy"]`` is True for decoys. ``obs``, ``uns``, ``var`` of real genes and the positions are copied. Copy other
    arrays that are not made from the counts, such as image embeddings, yourself.

    Raises
    ------
    KeyError, TypeError
        If something that is named is missing or has an unsupported type.
    MemoryError
        If the decoys would take more than half of the available memory.
    ValueError
        If values are no counts, names are taken, or an argument is out of range.

    Examples
    --------
    >>> given = lgdist_scvi.tl.prepare_audit(adata, layer="counts", n_decoys=20)
    >>> given.shape[1] - adata.shape[1], int(given.var["decoy"].sum())
    (20, 20)
    """
    check_container(adata)
    check_whole(0, n_decoys=n_decoys)
    check_seed(seed)
    # Some molecules are given, some held out.
    check_between(0, 1, fraction=fraction)
    check_label(layer=layer, size_factor_key=size_factor_key, spatial_key=spatial_key)
    check_positions(adata, spatial_key)
    # As floats, and some names of each.
    size = n_decoys * (8 * adata.n_obs + 200)
    require_memory(size, f"Counts of n_decoys={n_decoys} decoys", "Some fifty are enough.")
    controls = [str(name) for name in getattr(adata.obsm.get(Keys.CONTROLS), "columns", [])]
    names = [*(f"decoy_{i + 1}" for i in range(n_decoys)), *controls]
    _refuse_taken(adata, names)
    if size_factor_key is not None:
        check_size_factor(adata, size_factor_key)
    check_counts(adata, layer, None, size_factor_key, None, training=False)
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(count_matrix(adata, layer)[0]).astype(np.int64)
    sums = np.asarray(counts.sum(axis=1)).ravel()
    depth = sums if size_factor_key is None else np.round(adata.obs[size_factor_key].to_numpy()).astype(np.int64)
    decoys = _decoys(counts, depth, n_decoys, rng)
    if controls:
        decoys = sparse.hstack([decoys, _controls(adata)], format="csr")
    counts = sparse.hstack([counts, decoys], format="csr")
    counts.sum_duplicates()

    given = counts.copy()
    given.data = rng.binomial(counts.data, fraction)
    held_out = counts - given
    for part in (given, held_out):
        part.eliminate_zeros()
    rest = np.maximum(depth - sums, 0)  # molecules of genes that are not in the panel
    rest_given = rng.binomial(rest, fraction)

    prepared = AnnData(given.astype(np.float32), obs=adata.obs.copy(), var=_var(adata.var, names), uns=_uns(adata))
    prepared.layers[AuditKeys.COUNTS] = prepared.X.copy()
    prepared.layers[AuditKeys.HELD_OUT] = held_out.astype(np.float32)
    prepared.obs[AuditKeys.DEPTH] = np.asarray(given.sum(axis=1)).ravel() + rest_given
    prepared.obs[AuditKeys.HELD_OUT_DEPTH] = np.asarray(held_out.sum(axis=1)).ravel() + rest - rest_given
    prepared.obsm[spatial_key] = np.array(adata.obsm[spatial_key])
    return prepared


def _refuse_taken(adata: AnnData, names: list[str]) -> None:
    if AuditKeys.DECOY in adata.var:
        raise ValueError(
            f"adata.var[{AuditKeys.DECOY!r}] exists: adata was prepared for an audit before. Pass the original data, or "
            f"rename the column."
        )
    for key in (AuditKeys.DEPTH, AuditKeys.HELD_OUT_DEPTH):
        if key in adata.obs:
            raise ValueError(f"adata.obs[{key!r}] exists and would be replaced; rename the column.")
    taken = adata.var_names.intersection(names)
    if len(taken):
        raise ValueError(f"adata.var_names holds names of decoys, {listing(taken)}; rename these genes.")


def _controls(adata: AnnData) -> sparse.csr_matrix:
    values = adata.obsm[Keys.CONTROLS].to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(values) & (values >= 0) & (values == np.floor(values)))
    if bad.any():
        raise ValueError(
            f"adata.obsm[{Keys.CONTROLS!r}] has values that are no counts for {spot_listing(adata, bad.any(axis=1))}; it must "
            "hold the counts of the control features, as lgdist_scvi.pp.drop_controls writes them."
        )
    return sparse.csr_matrix(values.astype(np.int64))


def _decoys(
    counts: sparse.csr_matrix, depth: NDArray[np.int64], n_decoys: int, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Counts with the shares of real genes and no pattern."""
    totals = np.asarray(counts.sum(axis=0)).ravel()
    drawn = np.flatnonzero(totals >= min(LEAST_COUNTS, totals.max()))
    share = totals[rng.choice(drawn, n_decoys)] / depth.sum()
    # Gene by gene: the decoys of large data need not be dense together.
    columns = [sparse.csc_matrix(rng.poisson(depth * one)[:, None]) for one in share]
    return sparse.hstack(columns, format="csr") if columns else sparse.csr_matrix((len(depth), 0), dtype=np.int64)


def _var(var: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Annotation of real genes and decoys; of a decoy nothing is True."""
    longer = var.reindex([*var.index, *names])
    for name in var.columns[[pd.api.types.is_bool_dtype(kind) for kind in var.dtypes]]:
        longer[name] = var[name].reindex(longer.index, fill_value=False).astype(bool)
    longer[AuditKeys.DECOY] = np.arange(len(longer)) >= len(var)
    return longer


def _uns(adata: AnnData) -> dict:
    """What is not made from the counts: no registry of scvi-tools, no provenance of a completion."""

    def stale(key: str, value: object) -> bool:
        return key.startswith("_scvi") or (isinstance(value, dict) and value.get("package") == PACKAGE)

    return deepcopy({key: value for key, value in adata.uns.items() if not stale(str(key), value)})
