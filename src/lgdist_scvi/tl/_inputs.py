"""What an audit reads: checked once, then gene by gene in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_choice
from lgdist_scvi._constants import TARGET_SUM, AuditKeys
from lgdist_scvi.data._counts import check_count_values, check_counts
from lgdist_scvi.data._entries import BLOCK_ENTRIES, count_matrix
from lgdist_scvi.data._validation import check_container, check_obs_column, check_positions, check_size_factor
from lgdist_scvi.model._options import Scale

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

N_REGIONS = 8
SPOTS_PER_REGION = 10
"""Least mean number of spots of a region that is found from the positions."""
LARGEST = {"log1p": np.log1p(TARGET_SUM), "rate": 1.0, "counts": np.inf}
"""The highest value that there can be: a gene that is all of a spot."""
ROUNDING = 1e-3


class Block(NamedTuple):
    """Some genes of all spots, dense, ``(n_spots, n_genes)`` each."""

    genes: NDArray[np.intp]
    rate: NDArray[np.float64]
    given: NDArray[np.float64]
    held_out: NDArray[np.float64] | None
    std: NDArray[np.float64] | None


@dataclass(frozen=True)
class Inputs:
    """Completed values, and counts beside them."""

    adata: AnnData
    scale: Scale
    values: Any
    given: Any
    depth: NDArray[np.float64]
    held_out: Any
    held_depth: NDArray[np.float64]
    """Zeros where nothing is held out."""
    std: Any
    decoy: NDArray[np.bool_]
    region: NDArray[np.intp]
    region_names: list[str]
    positions: NDArray[np.float64]

    def block(self, genes: NDArray[np.intp]) -> Block:
        """Values of some genes as shares of the depth, and their counts."""
        values = _dense(self.values, genes)
        std = None if self.std is None else _dense(self.std, genes)
        if self.scale == "log1p":
            std = None if std is None else std * np.exp(values) / TARGET_SUM
            values = np.expm1(values) / TARGET_SUM
        elif self.scale == "counts":
            depth = np.where(self.depth > 0, self.depth, 1)[:, None]
            values, std = values / depth, None if std is None else std / depth
        held_out = None if self.held_out is None else _dense(self.held_out, genes)
        return Block(genes, values, _dense(self.given, genes), held_out, std)

    def blocks(self) -> Iterator[Block]:
        """All genes, as many at a time as memory allows."""
        for genes in gene_blocks(*self.adata.shape):
            yield self.block(genes)


def read(
    adata: AnnData,
    layer: str,
    scale: Scale,
    counts_layer: str | None,
    held_out_layer: str | None,
    groupby: str | None,
    std_layer: str | None,
    size_factor_key: str | None,
    spatial_key: str,
    seed: int,
) -> Inputs:
    """Check the arguments of :func:`lgdist_scvi.tl.audit`, and collect what they name.

    Raises
    ------
    KeyError, TypeError, ValueError
        As of :func:`lgdist_scvi.tl.audit`.
    """
    check_container(adata)
    check_choice("scale", scale, get_args(Scale))
    values = _completed(adata, layer, "layer", LARGEST[scale], scale)
    std = None if std_layer is None else _completed(adata, std_layer, "std_layer", np.inf, scale)
    if counts_layer is None and AuditKeys.COUNTS in adata.layers:
        counts_layer = AuditKeys.COUNTS
    if held_out_layer is None and AuditKeys.HELD_OUT in adata.layers:
        held_out_layer = AuditKeys.HELD_OUT
    if size_factor_key is not None:
        check_size_factor(adata, size_factor_key)
    held_out = None if held_out_layer is None else _layer(adata, held_out_layer, "held_out_layer")
    try:
        check_counts(adata, counts_layer, None, size_factor_key, None, training=False)
        if held_out is not None:
            check_count_values(adata, held_out, None, f"adata.layers[{held_out_layer!r}]")
    except (KeyError, TypeError, ValueError) as error:
        error.add_note("In an audit the counts are named by counts_layer=... and held_out_layer=..., not by layer=...")
        raise
    given, _ = count_matrix(adata, counts_layer)
    depth, held_depth = _depths(adata, given, held_out, size_factor_key)
    positions = check_positions(adata, spatial_key)
    region, names = _regions(adata, groupby, positions, seed)
    decoy = np.zeros(adata.n_vars, dtype=bool)
    if AuditKeys.DECOY in adata.var:
        decoy = adata.var[AuditKeys.DECOY].to_numpy(dtype=bool)
    if decoy.all():
        raise ValueError(
            f"adata.var[{AuditKeys.DECOY!r}] is True for all genes; keep the real genes beside the decoys."
        )
    given = _by_column(given)
    return Inputs(adata, scale, values, given, depth, held_out, held_depth, std, decoy, region, names, positions)


def gene_blocks(n_spots: int, n_genes: int) -> list[NDArray[np.intp]]:
    """Genes in blocks of about `BLOCK_ENTRIES` entries."""
    step = max(1, BLOCK_ENTRIES // n_spots)
    return [np.arange(start, min(start + step, n_genes)) for start in range(0, n_genes, step)]


def _layer(adata: AnnData, name: str, argument: str) -> Any:
    if not isinstance(name, str):
        raise TypeError(f"{argument}={name!r} must be the name of a layer.")
    if name not in adata.layers:
        found = sorted(key for key in adata.layers if key is not None)
        raise KeyError(f"adata.layers[{name!r}] is missing (found: {found}); correct {argument}=...")
    return _by_column(count_matrix(adata, name)[0])


def _completed(adata: AnnData, name: str, argument: str, most: float, scale: str) -> Any:
    """Layer of values that are finite, not negative and possible on their scale."""
    matrix = _layer(adata, name, argument)
    remedy = {
        "NaN or infinite": "complete all entries, or drop the spots and genes without a value",
        "negative": "the audit needs expression, not residuals; clip small negative values with np.maximum(values, 0)",
        "too large": f"with scale={scale!r} no value exceeds {most:.4g}; pass the scale of the layer as scale='log1p', "
        "'rate' or 'counts'",
    }
    # Column by column, so that wrong entries are named by their spot and gene.
    for genes in gene_blocks(adata.n_obs, adata.n_vars):
        values = _dense(matrix, genes)
        finite = np.isfinite(values)
        masks = (~finite, values < 0, finite & (values > most * (1 + ROUNDING)))
        for fault, wrong in zip(remedy, masks, strict=True):
            if wrong.any():
                spot, gene = np.argwhere(wrong)[0]
                raise ValueError(
                    f"adata.layers[{name!r}] ({argument}) has values that are {fault}, such as {values[spot, gene]:.4g} in "
                    f"spot {adata.obs_names[spot]!r}, gene {adata.var_names[genes[gene]]!r}; {remedy[fault]}."
                )
    return matrix


def _depths(
    adata: AnnData, given: Any, held_out: Any, size_factor_key: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Depth of every spot in the given and in the held-out counts."""
    sums = np.asarray(given.sum(axis=1), dtype=np.float64).ravel()
    held_sums = np.zeros(adata.n_obs) if held_out is None else np.asarray(held_out.sum(axis=1), dtype=float).ravel()
    if size_factor_key is not None:
        depth = adata.obs[size_factor_key].to_numpy(dtype=np.float64)
        # The genes outside of the panel are taken to be held out like those in it.
        return depth, depth * held_sums / np.where(sums > 0, sums, 1)
    if not {AuditKeys.DEPTH, AuditKeys.HELD_OUT_DEPTH} <= set(adata.obs):
        return sums, held_sums
    for key in (AuditKeys.DEPTH, AuditKeys.HELD_OUT_DEPTH):
        check_size_factor(adata, key)
    depth, held_depth = (adata.obs[key].to_numpy(float) for key in (AuditKeys.DEPTH, AuditKeys.HELD_OUT_DEPTH))
    return depth, held_sums if held_out is None else held_depth


def _regions(
    adata: AnnData, groupby: str | None, positions: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.intp], list[str]]:
    """Region of every spot, and the names of the regions."""
    if groupby is not None:
        check_obs_column(adata, groupby, "groupby")
        column = adata.obs[groupby].astype("category").cat.remove_unused_categories()
        if len(column.cat.categories) < 2:
            raise ValueError(f"adata.obs[{groupby!r}] (groupby) has one region only; name a column with several.")
        return column.cat.codes.to_numpy().astype(np.intp), [str(name) for name in column.cat.categories]
    n_regions = min(N_REGIONS, adata.n_obs // SPOTS_PER_REGION)
    if n_regions < 2:
        raise ValueError(
            f"adata has {adata.n_obs} spots, too few to compare regions of {SPOTS_PER_REGION}; name regions with groupby=..."
        )
    from sklearn.cluster import KMeans

    found = KMeans(n_regions, n_init=1, random_state=seed).fit_predict(positions)
    return found.astype(np.intp), [str(i + 1) for i in range(n_regions)]


def _by_column(matrix: Any) -> Any:
    return matrix.tocsc() if sparse.issparse(matrix) else matrix


def _dense(matrix: Any, genes: NDArray[np.intp]) -> NDArray[np.float64]:
    part = matrix[:, genes]
    return np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)
