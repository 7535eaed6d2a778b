"""Maps of measured and completed expression, and of its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import KDTree

from lgdist_scvi._constants import PACKAGE, STD_SUFFIX, Keys
from lgdist_scvi.data._entries import listing
from lgdist_scvi.pl._axes import axes_grid
from lgdist_scvi.pl._values import dense_part, measured_values

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

_UNIT = "log1p(counts per 10,000)"
_NO_VALUE = "0.85"  # light grey, absent from the usual colour maps
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
    library_id: Hashable | list[Hashable] | None = None,
    img: bool = True,
    img_alpha: float = 1.0,
    spot_size: float | None = None,
    cmap: str = "viridis",
    axes: Any = None,
) -> NDArray[np.object_]:
    """Draw measured beside completed expression: one row per gene and section, one colour scale per gene.

    The measured map shows ``log1p(counts / depth * 10,000)``, the default scale of completed expression. Entries
    without a value are grey.

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
    library_key
        Column of ``obs`` with the sections; needed where there are several.
    library_id
        Section or list of sections to draw; all by default.
    img
        Draw the image of the section in ``uns["spatial"]`` below the spots, if there is one.
    img_alpha
        Opacity of the image, from 0 to 1.
    spot_size
        Diameter of a spot in the unit of the positions. By default that of the scale factors if the image is drawn,
        else the median distance to the nearest spot.
    cmap
        Matplotlib colour map.
    axes
        Matplotlib axes, two per gene and section in row order; None makes a new figure.

    Returns
    -------
    The axes, ``(n_panels, 2)``: one row per gene and section, grouped by gene.

    Raises
    ------
    KeyError
        If a gene, layer or key is missing.
    ValueError
        If a section is unknown, the layer is on another scale, or the number of axes does not fit.
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
    sections = _sections(adata, spatial_key, library_key, library_id, img)
    spots = np.concatenate([section.spots for section in sections])
    completed = _columns(adata, layer, spots, chosen, "model.add_completed_layer(adata)")
    measured = measured_values(adata, measured_layer, observed_layer, size_factor_key, spots, chosen)
    panels = axes_grid(axes, len(chosen) * len(sections), 2, _panel_size(sections, 2))
    rows = iter(panels)
    for gene, *pair in zip(adata.var_names[chosen], measured.T, completed.T, strict=True):
        limits = _limits(np.concatenate(pair))
        for section, *parts in zip(sections, *(_split(values, sections) for values in pair), strict=True):
            row = next(rows)
            for ax, values, title in zip(row, parts, ("measured", "completed"), strict=True):
                drawn = _draw(ax, section, values, limits, spot_size, cmap, img_alpha)
                ax.set_title(f"{gene}, {title}{section.suffix}")
            _colour_bar(drawn, row, np.concatenate(parts), _UNIT)
    return panels


def uncertainty(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    layer: str = f"{Keys.LAYER}{STD_SUFFIX}",
    spatial_key: str = "spatial",
    library_key: str | None = None,
    library_id: Hashable | list[Hashable] | None = None,
    img: bool = True,
    img_alpha: float = 1.0,
    spot_size: float | None = None,
    cmap: str = "magma",
    axes: Any = None,
) -> NDArray[np.object_]:
    """Draw the standard deviation of the completed expression: one column and one colour scale per gene.

    Parameters
    ----------
    adata
        Annotated spots.
    genes
        Names of the genes.
    layer
        Layer with the standard deviations on the scale ``"log1p"``, as
        :meth:`lgdist_scvi.LGDiST.add_completed_layer` writes it with ``return_std=True``.
    spatial_key, library_key, library_id, img, img_alpha, spot_size, cmap
        As for :func:`completion`.
    axes
        Matplotlib axes, one per section and gene in row order; None makes a new figure.

    Returns
    -------
    The axes, ``(n_sections, n_genes)``.

    Raises
    ------
    KeyError
        If a gene, layer or key is missing.
    ValueError
        If a section is unknown, the layer is on another scale, or the number of axes does not fit.

    Examples
    --------
    >>> model.add_completed_layer(return_std=True)
    >>> axes = lgdist_scvi.pl.uncertainty(adata, "gene_1")
    """
    chosen = _gene_index(adata, genes)
    sections = _sections(adata, spatial_key, library_key, library_id, img)
    spots = np.concatenate([section.spots for section in sections])
    std = _columns(adata, layer, spots, chosen, "model.add_completed_layer(return_std=True)")
    panels = axes_grid(axes, len(sections), len(chosen), _panel_size(sections, 1))
    for column, gene, values in zip(panels.T, adata.var_names[chosen], std.T, strict=True):
        limits = _limits(values)
        for ax, section, part in zip(column, sections, _split(values, sections), strict=True):
            drawn = _draw(ax, section, part, limits, spot_size, cmap, img_alpha)
            ax.set_title(f"{gene}{section.suffix}")
            _colour_bar(drawn, [ax], part, f"standard deviation of\n{_UNIT}")
    return panels


@dataclass(frozen=True)
class _Section:
    """Spots of a section, their suffix in titles, and the image below them."""

    spots: NDArray[np.intp]
    positions: NDArray[np.float64]
    suffix: str = ""
    image: NDArray | None = None
    scale: float = 1.0
    """Pixels of the image per unit of the positions."""
    diameter: float | None = None
    """Diameter of a spot, in the unit of the positions."""


def _gene_index(adata: AnnData, genes: str | Sequence[str]) -> NDArray[np.intp]:
    """Column numbers of the genes."""
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty; name at least one gene.")
    if missing := [name for name in names if name not in adata.var_names]:
        raise KeyError(f"adata.var_names has no {listing(missing)}; correct genes=...")
    if not adata.var_names.is_unique:
        raise ValueError("adata.var_names are not unique; call adata.var_names_make_unique().")
    return adata.var_names.get_indexer(names)


def _sections(
    adata: AnnData,
    spatial_key: str,
    library_key: str | None,
    library_id: Hashable | list[Hashable] | None,
    img: bool,
) -> list[_Section]:
    """Sections to draw, with their images if requested and available."""
    if spatial_key not in adata.obsm:
        raise KeyError(f"adata.obsm[{spatial_key!r}] is missing (found: {sorted(adata.obsm)}); correct spatial_key=...")
    positions = np.asarray(adata.obsm[spatial_key], dtype=np.float64)[:, :2]
    images = adata.uns.get("spatial", {}) if img else {}
    if library_key is None:
        if library_id is not None:
            raise ValueError(f"library_id={library_id!r} needs library_key=..., the obs column with the sections.")
        entry = next(iter(images.values())) if len(images) == 1 else {}
        return [_Section(np.arange(adata.n_obs), positions, **_image(entry))]
    if library_key not in adata.obs:
        raise KeyError(f"adata.obs[{library_key!r}] is missing (found: {list(adata.obs)}); correct library_key=...")
    libraries = adata.obs[library_key]
    present = list(libraries.dropna().unique())
    wanted = present if library_id is None else library_id if isinstance(library_id, list) else [library_id]
    if unknown := [name for name in wanted if name not in present]:
        raise ValueError(
            f"library_id has {listing(unknown)}, no section of adata.obs[{library_key!r}] (found: {listing(present)})."
        )
    if not wanted:
        raise ValueError("library_id is empty; name at least one section.")
    sections = []
    for name in wanted:
        spots = np.flatnonzero((libraries == name).to_numpy())
        suffix = f", {name}" if len(wanted) > 1 else ""
        sections.append(_Section(spots, positions[spots], suffix, **_image(images.get(str(name), {}))))
    return sections


def _image(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The image of highest resolution of a section, with its scale factors; empty if there is none."""
    factors = entry.get("scalefactors", {})
    scales = {
        key: factors[f"tissue_{key}_scalef"] for key in entry.get("images", {}) if f"tissue_{key}_scalef" in factors
    }
    if not scales:
        return {}
    key = max(scales, key=scales.__getitem__)
    diameter = factors.get("spot_diameter_fullres")
    return {"image": np.asarray(entry["images"][key]), "scale": float(scales[key]), "diameter": diameter}


def _split(values: NDArray[np.float64], sections: list[_Section]) -> list[NDArray[np.float64]]:
    """Split values of the spots of all sections into those of each."""
    return np.split(values, np.cumsum([len(section.spots) for section in sections])[:-1])


def _columns(
    adata: AnnData, layer: str, spots: NDArray[np.intp], genes: NDArray[np.intp], origin: str
) -> NDArray[np.float64]:
    """Dense values of some spots and genes of a layer on the scale "log1p"."""
    if layer not in adata.layers:
        raise KeyError(f"adata.layers[{layer!r}] is missing; write it with {origin}, or correct layer=...")
    written = adata.uns.get(layer.removesuffix(STD_SUFFIX))
    if isinstance(written, Mapping) and written.get("package") == PACKAGE and written.get("scale") != "log1p":
        raise ValueError(
            f"adata.layers[{layer!r}] was written with scale={written.get('scale')!r}, but the map shows {_UNIT}; write another "
            "layer with add_completed_layer(key_added=..., scale='log1p') and name it as layer=..."
        )
    return dense_part(adata.layers[layer], spots, genes)


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of a colour scale that starts at 0."""
    finite = values[np.isfinite(values)]
    top = float(np.percentile(finite, _TOP_PERCENTILE)) if finite.size else 0.0
    if top <= 0:
        top = float(finite.max(initial=0.0))  # fewer than 0.5% of the spots have the gene
    return 0.0, top if top > 0 else 1.0


def _panel_size(sections: list[_Section], panels_per_bar: int) -> tuple[float, float]:
    """Width and height in inches of a panel for the first section and its share of a colour bar."""
    width, height = np.maximum(np.ptp(sections[0].positions, axis=0), 1e-12)
    return 3.2 + 1.0 / panels_per_bar, 3.2 * float(np.clip(height / width, 0.4, 2.0)) + 0.4


def _draw(
    ax: Axes,
    section: _Section,
    values: NDArray[np.float64],
    limits: tuple[float, float],
    spot_size: float | None,
    cmap: str | Colormap,
    img_alpha: float,
) -> Collection:
    """Draw the image, and the spots as discs scaled in the unit of the positions."""
    import matplotlib as mpl
    from matplotlib.collections import EllipseCollection

    positions, spacing = section.positions, _spacing(section.positions)
    size = spot_size or section.diameter or spacing
    if section.image is not None:
        height, width = np.array(section.image.shape[:2]) / section.scale
        ax.imshow(section.image, extent=(0, width, height, 0), cmap="gray", alpha=img_alpha)
    discs = EllipseCollection(
        size, size, 0, units="xy", offsets=positions, offset_transform=ax.transData, linewidths=0, rasterized=True
    )
    discs.set_array(np.ma.masked_invalid(values))
    discs.set_cmap(mpl.colormaps[cmap].with_extremes(bad=_NO_VALUE) if isinstance(cmap, str) else cmap)
    discs.set_clim(*limits)
    ax.add_collection(discs)
    low, high = positions.min(axis=0) - spacing, positions.max(axis=0) + spacing
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
    """Add a colour bar beside axes; a pointed end marks values above the scale."""
    exceeds = bool(np.nanmax(values, initial=0.0) > drawn.get_clim()[1])
    figure = axes[0].figure
    figure.colorbar(drawn, ax=list(axes), label=label, extend="max" if exceeds else "neither", shrink=0.8)
