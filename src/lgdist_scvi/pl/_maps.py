"""Maps of measured and completed expression, and of its uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.spatial import KDTree

from lgdist_scvi._constants import STD_SUFFIX, TARGET_SUM, Keys
from lgdist_scvi.data._entries import count_matrix, listing, observed_entries, observed_matrix
from lgdist_scvi.pl._axes import axes_grid

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from numpy.typing import NDArray

_UNIT = "log1p(counts per 10,000)"
_NO_VALUE = "0.85"  # light grey, on no usual colour map
_TOP_PERCENTILE = 99.5  # a few extreme spots must not darken the map


def completion(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    layer: str = Keys.LAYER,
    measured_layer: str | None = None,
    observed_layer: str | None = None,
    size_factor_key: str | None = None,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    library: Hashable | None = None,
    spot_size: float | None = None,
    cmap: str = "viridis",
    axes: Any = None,
) -> NDArray[np.object_]:
    """Draw measured beside completed expression, one row per gene and one colour scale per row.

    The measured map shows ``log1p(counts / depth * 10,000)``, the scale on which expression is completed by default.
    Entries without a value are grey.

    Parameters
    ----------
    adata
        Annotated spots.
    genes
        Names of the genes.
    layer
        Layer with the completed expression, on the scale ``"log1p"`` (log1p of counts per 10,000).
    measured_layer
        Layer with the counts; None takes ``X``.
    observed_layer
        Boolean layer, True where the entry was observed, as at registration; None when all were.
    size_factor_key
        Column of ``obs`` with the depth of the spots, as at registration; None takes the sum of the observed counts.
    spatial_key
        Key of the positions in ``obsm``, with y downwards as in an image.
    library_key, library
        Column of ``obs`` with the sections, and the section to draw; needed where there are several.
    spot_size
        Diameter of a spot in the unit of the positions; None takes the median distance to the nearest spot.
    cmap
        Matplotlib colour map.
    axes
        Matplotlib axes, two per gene in row order; None makes a new figure.

    Returns
    -------
    The axes, ``(n_genes, 2)``.

    Raises
    ------
    KeyError
        If a gene, layer or key is missing.
    ValueError
        If the section is not settled, or the number of axes does not fit.
    TypeError
        If a layer is neither an array nor a CSR or CSC matrix.

    Examples
    --------
    >>> model.add_completed_layer()
    >>> axes = lgdist_scvi.pl.completion(adata, ["gene_1", "gene_2"], measured_layer="counts")
    >>> axes.shape
    (2, 2)
    """
    chosen = _gene_index(adata, genes)
    spots = _spots(adata, library_key, library)
    positions = _positions(adata, spatial_key, spots)
    completed = _columns(adata, layer, spots, chosen, "model.add_completed_layer(adata)")
    measured = _measured(adata, measured_layer, observed_layer, size_factor_key, spots, chosen)
    panels = axes_grid(axes, len(chosen), 2, _panel_size(positions, 2))
    for row, gene, pair in zip(panels, adata.var_names[chosen], zip(measured.T, completed.T, strict=True), strict=True):
        limits = _limits(np.concatenate(pair))
        for ax, values, title in zip(row, pair, ("measured", "completed"), strict=True):
            drawn = _draw(ax, positions, values, limits, spot_size, cmap)
            ax.set_title(f"{gene}, {title}")
        _colour_bar(drawn, row, np.concatenate(pair), _UNIT)
    return panels


def uncertainty(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    layer: str = f"{Keys.LAYER}{STD_SUFFIX}",
    spatial_key: str = "spatial",
    library_key: str | None = None,
    library: Hashable | None = None,
    spot_size: float | None = None,
    cmap: str = "magma",
    axes: Any = None,
) -> NDArray[np.object_]:
    """Draw the standard deviation of the completed expression, one panel and one colour scale per gene.

    Parameters
    ----------
    adata
        Annotated spots.
    genes
        Names of the genes.
    layer
        Layer with the standard deviations on the scale ``"log1p"``, as
        :meth:`lgdist_scvi.LGDiST.add_completed_layer` writes it with ``return_std=True``.
    spatial_key, library_key, library, spot_size, cmap
        As for :func:`completion`.
    axes
        Matplotlib axes, one per gene; None makes a new figure.

    Returns
    -------
    The axes, ``(n_genes,)``.

    Raises
    ------
    KeyError
        If a gene, layer or key is missing.
    ValueError
        If the section is not settled, or the number of axes does not fit.

    Examples
    --------
    >>> model.add_completed_layer(return_std=True)
    >>> axes = lgdist_scvi.pl.uncertainty(adata, "gene_1")
    """
    chosen = _gene_index(adata, genes)
    spots = _spots(adata, library_key, library)
    positions = _positions(adata, spatial_key, spots)
    std = _columns(adata, layer, spots, chosen, "model.get_completed_expression(return_std=True)")
    panels = axes_grid(axes, 1, len(chosen), _panel_size(positions, 1)).ravel()
    for ax, gene, values in zip(panels, adata.var_names[chosen], std.T, strict=True):
        drawn = _draw(ax, positions, values, _limits(values), spot_size, cmap)
        ax.set_title(gene)
        _colour_bar(drawn, [ax], values, f"standard deviation of\n{_UNIT}")
    return panels


def _gene_index(adata: AnnData, genes: str | Sequence[str]) -> NDArray[np.intp]:
    """Columns of the genes."""
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty; name at least one gene.")
    if missing := [name for name in names if name not in adata.var_names]:
        raise KeyError(f"adata.var_names has no {listing(missing)}; correct genes=...")
    if not adata.var_names.is_unique:
        raise ValueError("adata.var_names are not unique; call adata.var_names_make_unique().")
    return adata.var_names.get_indexer(names)


def _spots(adata: AnnData, library_key: str | None, library: Hashable | None) -> NDArray[np.intp]:
    """Rows of the section to draw."""
    if library_key is None:
        if library is not None:
            raise ValueError(f"library={library!r} needs library_key=..., the column of adata.obs with the sections.")
        return np.arange(adata.n_obs)
    if library_key not in adata.obs:
        raise KeyError(f"adata.obs[{library_key!r}] is missing (found: {list(adata.obs)}); correct library_key=...")
    libraries = adata.obs[library_key]
    present = list(libraries.dropna().unique())
    if library is None and len(present) == 1:
        library = present[0]
    if library not in present:
        raise ValueError(
            f"library={library!r} is no section of adata.obs[{library_key!r}], which has {listing(present)}; pass one "
            "of them."
        )
    return np.flatnonzero((libraries == library).to_numpy())


def _positions(adata: AnnData, spatial_key: str, spots: NDArray[np.intp]) -> NDArray[np.float64]:
    """Positions of shape ``(n_spots, 2)``."""
    if spatial_key not in adata.obsm:
        raise KeyError(f"adata.obsm[{spatial_key!r}] is missing (found: {sorted(adata.obsm)}); correct spatial_key=...")
    return np.asarray(adata.obsm[spatial_key], dtype=np.float64)[spots, :2]


def _columns(
    adata: AnnData, layer: str, spots: NDArray[np.intp], genes: NDArray[np.intp], origin: str
) -> NDArray[np.float64]:
    """Values of some spots and genes of a layer, dense."""
    if layer not in adata.layers:
        raise KeyError(f"adata.layers[{layer!r}] is missing; write it with {origin}, or correct layer=...")
    return _dense(adata.layers[layer], spots, genes)


def _dense(matrix: Any, spots: NDArray[np.intp], genes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Take some rows and columns of an array or sparse matrix."""
    part = matrix[:, genes][spots]
    return np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)


def _measured(
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
    values = np.log1p(_dense(counts, spots, genes) / depth * TARGET_SUM)
    return values if observed is None else np.where(_dense(observed, spots, genes) > 0, values, np.nan)


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Find the ends of a colour scale that starts at 0."""
    finite = values[np.isfinite(values)]
    top = float(np.percentile(finite, _TOP_PERCENTILE)) if finite.size else 0.0
    if top <= 0:
        top = float(finite.max(initial=0.0))  # fewer than 0.5% of the spots have the gene
    return 0.0, top if top > 0 else 1.0


def _panel_size(positions: NDArray[np.float64], panels_per_bar: int) -> tuple[float, float]:
    """Inches of a panel that fits the section and its share of a colour bar."""
    width, height = np.maximum(np.ptp(positions, axis=0), 1e-12)
    return 3.2 + 1.0 / panels_per_bar, 3.2 * float(np.clip(height / width, 0.4, 2.0)) + 0.4


def _draw(
    ax: Axes,
    positions: NDArray[np.float64],
    values: NDArray[np.float64],
    limits: tuple[float, float],
    spot_size: float | None,
    cmap: str,
) -> Collection:
    """Draw spots as discs whose size is given in the unit of the positions."""
    import matplotlib as mpl
    from matplotlib.collections import EllipseCollection

    size = _spacing(positions) if spot_size is None else spot_size
    discs = EllipseCollection(
        size, size, 0, units="xy", offsets=positions, offset_transform=ax.transData, linewidths=0, rasterized=True
    )
    discs.set_array(np.ma.masked_invalid(values))
    discs.set_cmap(mpl.colormaps[cmap].with_extremes(bad=_NO_VALUE) if isinstance(cmap, str) else cmap)
    discs.set_clim(*limits)
    ax.add_collection(discs)
    low, high = positions.min(axis=0) - size, positions.max(axis=0) + size
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return discs


def _spacing(positions: NDArray[np.float64]) -> float:
    """Median distance to the nearest spot at another position."""
    apart = np.unique(positions, axis=0)
    if len(apart) < 2:
        return 1.0
    return float(np.median(KDTree(apart).query(apart, k=2)[0][:, 1]))


def _colour_bar(drawn: Collection, axes: Sequence[Axes], values: NDArray[np.float64], label: str) -> None:
    """Put a colour bar beside axes; a pointed end tells that values exceed the scale."""
    exceeds = bool(np.nanmax(values, initial=0.0) > drawn.get_clim()[1])
    figure = axes[0].figure
    figure.colorbar(drawn, ax=list(axes), label=label, extend="max" if exceeds else "neither", shrink=0.8)
