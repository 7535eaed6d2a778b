"""Selection of target and context genes by spatial autocorrelation."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lgdist_scvi._checks import check_label, check_numbers, check_positive, check_whole
from lgdist_scvi._constants import Keys
from lgdist_scvi.data._controls import controls_among
from lgdist_scvi.data._counts import ROUNDED, check_count_values, checked_depth
from lgdist_scvi.data._entries import (
    count_matrix,
    count_observed,
    listing,
    observed_matrix,
    spot_listing,
)
from lgdist_scvi.data._medians import fill_by_group
from lgdist_scvi.data._neighbors import library_codes, spatial_graph
from lgdist_scvi.data._on_disk import annotation_in_memory, counts_on_disk
from lgdist_scvi.data._regions import spots_of
from lgdist_scvi.data._validation import (
    check_container,
    check_group_names,
    check_library_sizes,
    check_sections_apart,
    check_size_factor,
)

from ._controls import controls_apart
from ._moran import log_expression, moran

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


# Detected entries of the genes on disk that are ranked at a time: 0.7 GB.
GROUP_ENTRIES = 1 << 25


def select_genes(
    adata: AnnData | SpatialData,
    *,
    layer: str | None = None,
    n_target: int = 128,
    n_context: int = 896,
    keep: Sequence[str] = (),
    gene_symbols: str | None = None,
    table_key: str = "table",
    spatial_key: str = "spatial",
    library_key: str | None = None,
    observed_layer: str | None = None,
    size_factor_key: str | None = None,
    n_neighbors: int = 6,
    min_fraction: float = 0.05,
    target_sum: float = 1e4,
) -> AnnData:
    """Select the genes with the highest Moran's I.

    Moran's I of ``log1p(counts / depth * target_sum)`` is computed within each library and averaged over libraries with
    equal weights. The `n_target` highest ranked genes are the targets, the next `n_context` are the context. Only
    observed entries are read. A hidden entry contributes nothing, like one at the mean of the gene's observed entries
    in its library. Moran's I is normalised by the observed entries and pairs, so that hiding entries does not lower a
    rank. Spots without a count are left out: their zeros would look like a pattern of every gene. Control features are left
    out as by :func:`drop_controls`.

    Parameters
    ----------
    adata
        Annotated spots with raw counts of all genes, or a SpatialData object with a table of them; not changed. Of an AnnData on
        disk (``backed="r"`` or :func:`anndata.experimental.read_lazy`) the counts are read in blocks, and of several millions of
        spots more than once: the memory needed is that of the selected genes.
    layer
        Layer with the counts; None takes ``X``.
    n_target
        Number of target genes, those of `keep` among them.
    n_context
        Number of context genes.
    keep
        Genes that you need, such as markers: they are targets whatever their rank. A gene that is high almost everywhere, as
        ERBB2 in a HER2-positive tumour, has little pattern and may rank low.
    gene_symbols
        Column of ``var`` with the names that `keep` has; by default ``var_names``.
    table_key
        Name of the table of a SpatialData object.
    spatial_key
        Key of the positions in ``obsm``; of a table without, the centroids of its shapes, labels or points are taken.
    library_key
        Column of ``obs`` with the libraries; None for one library, or for the regions of a table.
    observed_layer
        Boolean layer, True where the entry was observed; None when all were.
    size_factor_key
        Column of ``obs`` with the depth (counts over the whole transcriptome) of the spots, if `adata` has fewer genes than were
        measured; by default ``total_counts`` if it is there, with a warning, else the sum of the observed entries.
    n_neighbors
        Neighbours per spot, weighted equally.
    min_fraction
        Minimum share of a gene's observed entries that must be above zero, over all libraries.
    target_sum
        Depth to which spots are scaled, in counts.

    Returns
    -------
    A copy of `adata` or of the table, in memory, with the selected genes in their original order, ``var["moran_i"]``, ``var["target_gene"]`` and
    unless a depth is given ``obs["total_counts"]``: the observed counts of a spot over all genes of `adata`, to be registered as
    ``size_factor_key``. A spot without any observed entry gets the median of its library, and a spot without a count 0.

    Raises
    ------
    KeyError
        If a named key or gene is missing.
    TypeError
        If counts or mask are neither an array nor a CSR or CSC matrix, or counts on disk are stored by gene.
    ValueError
        If counts, positions, depths or arguments are invalid, a mask is named for counts on disk, no gene is detected in `min_fraction` of the spots, or
        ``obs["total_counts"]`` is there and no depth, or may tell of hidden counts.

    Notes
    -----
    The weights are row-standardised, as in :func:`squidpy.gr.spatial_autocorr`. A gene that is constant within a
    library has a Moran's I of 0 there.

    References
    ----------
    Moran's I: :cite:p:`moran1950notes`. Target and context genes: :cite:p:`cardenas2025lgdist`.

    Examples
    --------
    >>> panel = lgdist_scvi.pp.select_genes(adata, layer="counts", n_target=5, n_context=15)
    >>> panel.n_vars, int(panel.var["target_gene"].sum())
    (20, 5)

    A table can be added beside the one with all genes, and annotates the same shapes:

    >>> sdata["panel"] = lgdist_scvi.pp.select_genes(sdata, layer="counts", n_target=5, n_context=15, keep=["gene_3"])
    >>> table = lgdist_scvi.LGDiST.setup_spatialdata(sdata, layer="counts", table_key="panel")
    """
    adata, library_key = spots_of(adata, table_key, spatial_key, library_key)
    check_label(layer=layer, library_key=library_key, spatial_key=spatial_key, gene_symbols=gene_symbols)
    stored = counts_on_disk(adata, layer)
    if stored is not None:
        if observed_layer is not None:
            raise ValueError(
                f"{stored.where} is on disk, where no observed_layer={observed_layer!r} is read; load the data with adata = "
                "adata.to_memory(), or select the genes from all entries."
            )
        adata = annotation_in_memory(adata)
    if (control := controls_among(adata.var_names)).any():
        adata = controls_apart(
            adata, count_matrix(adata, layer)[0] if stored is None else stored, control, stacklevel=2
        )
        stored = None if stored is None else stored[:, np.flatnonzero(~control)]
    check_whole(1, n_target=n_target)
    check_whole(0, n_context=n_context)
    check_numbers(0, min_fraction=min_fraction)
    check_positive(target_sum=target_sum)
    check_container(adata, views=True)
    check_group_names(adata, library_key, "library_key")
    positions = check_sections_apart(adata, spatial_key, library_key)
    check_whole(1, n_neighbors=n_neighbors)
    check_library_sizes(adata, library_key, n_neighbors)
    codes = library_codes(None if library_key is None else adata.obs[library_key], adata.n_obs)
    counts, where = count_matrix(adata, layer) if stored is None else (stored, stored.where)
    observed = observed_matrix(adata, observed_layer)
    sums, _, detected = check_count_values(adata, counts, observed, where)
    spots_seen, seen = count_observed(observed, adata.shape)
    if size_factor_key is None:
        depth = _fill_depth(sums, spots_seen, codes, where)
        size_factor_key = _other_depth(adata, depth, observed_layer)
    if size_factor_key is not None:
        check_size_factor(adata, size_factor_key)
        depth = checked_depth(adata, size_factor_key, sums)

    kept = _kept(adata, keep, gene_symbols)
    enough = detected >= np.maximum(min_fraction * seen, 1)
    if not enough.any():
        raise ValueError(
            f"{where} has no gene detected in at least {min_fraction:.0%} of the spots; lower min_fraction or check "
            "that it holds raw counts."
        )
    candidates = np.flatnonzero(enough | kept)
    graph, _ = spatial_graph(positions, codes, n_neighbors)
    score = np.full(adata.n_vars, np.nan)
    told = np.flatnonzero(depth > 0)
    if len(told) < adata.n_obs:
        warnings.warn(
            f"{where} has no count for {spot_listing(adata, depth == 0)}, which are left out of Moran's I.",
            UserWarning,
            stacklevel=2,
        )
        graph, codes = graph[told][:, told], codes[told]
    for genes in _groups(candidates, detected) if stored is not None else [candidates]:
        values, mask = log_expression(counts, observed, genes, depth, target_sum)
        if len(told) < adata.n_obs:
            values, mask = values[told], None if mask is None else mask[told]
        score[genes] = moran(values, mask, graph, codes)

    ranked = candidates[np.lexsort((-score[candidates], ~kept[candidates]))]
    n_target = max(n_target, int(kept.sum()))
    if len(ranked) < n_target + n_context:
        warnings.warn(
            f"Only {len(ranked)} of {adata.n_vars} genes are detected in at least {min_fraction:.0%} of the spots, "
            f"fewer than n_target + n_context = {n_target + n_context}; all of them are kept.",
            UserWarning,
            stacklevel=2,
        )
    chosen = np.sort(ranked[: n_target + n_context])
    target = np.zeros(adata.n_vars, dtype=bool)
    target[ranked[:n_target]] = True
    result = adata[:, chosen].copy()
    if stored is not None:
        result.X = stored[:, chosen].to_memory()
        if layer is not None:
            result.layers[layer] = result.X.copy()
    result.var[Keys.MORAN] = score[chosen]
    result.var[Keys.TARGET_GENES] = target[chosen]
    if size_factor_key is None:
        result.obs[Keys.DEPTH] = depth
    return result


def _groups(genes: NDArray[np.int64], detected: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Genes in groups of about `GROUP_ENTRIES` detected entries."""
    group = np.cumsum(detected[genes]) // GROUP_ENTRIES
    return np.split(genes, np.flatnonzero(np.diff(group)) + 1)


def _kept(adata: AnnData, keep: Sequence[str], gene_symbols: str | None) -> NDArray[np.bool_]:
    """True for the genes that the user names, ``(n_genes,)``."""
    if isinstance(keep, str):
        keep = [keep]
    if gene_symbols is not None and gene_symbols not in adata.var:
        raise KeyError(f"adata.var[{gene_symbols!r}] is missing (found: {list(adata.var)}); correct gene_symbols=...")
    names = adata.var_names if gene_symbols is None else adata.var[gene_symbols].astype(str)
    if lost := sorted(set(keep) - set(names)):
        raise KeyError(
            f"keep=... names {len(lost)} genes that adata does not have: {listing(lost)} (its genes: "
            f"{listing(list(names), 3)}); correct the names, or name the var column that has them in gene_symbols=..."
        )
    return np.asarray(names.isin(list(keep)), dtype=bool)


def _other_depth(adata: AnnData, depth: NDArray[np.float64], observed_layer: str | None) -> str | None:
    """Name of the depths that are there already, if they are not the sums of the counts and may be of the user."""
    if Keys.DEPTH not in adata.obs:
        return None
    known = pd.to_numeric(adata.obs[Keys.DEPTH], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    other = ~np.isclose(known, depth, rtol=1e-5)
    if not other.any():
        return None
    what = f"adata.obs[{Keys.DEPTH!r}] differs from the sum of the observed counts for {spot_listing(adata, other)}"
    if observed_layer is not None or not (known >= ROUNDED * depth).all():
        # It may tell of hidden counts.
        raise ValueError(
            f"{what}, and would be replaced. If it is the depth over the whole transcriptome, pass "
            f"size_factor_key={Keys.DEPTH!r}; else delete it."
        )
    warnings.warn(
        f"{what}. It is taken as their depth over the whole transcriptome; delete it to have the sum taken.",
        UserWarning,
        stacklevel=3,
    )
    return Keys.DEPTH


def _fill_depth(depth: NDArray, seen: NDArray, codes: NDArray, where: str) -> NDArray[np.float64]:
    """Give spots without an observed entry the median depth of their library; an observed spot without a count keeps 0."""
    hidden = seen == 0
    if hidden.all():
        raise ValueError(
            f"{where} has no observed entry; check that observed_layer is True where entries were observed."
        )
    return np.where(hidden, fill_by_group(depth, codes, depth == 0), depth)
