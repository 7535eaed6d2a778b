"""Maps of measured and completed expression, and of its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._constants import PACKAGE, STD_SUFFIX, Keys
from lgdist_scvi.data._entries import listing
from lgdist_scvi.pl._axes import axes_grid, save_figure
from lgdist_scvi.pl._spots import colour_bar, draw_spots, panel_size, sections_of
from lgdist_scvi.pl._values import dense_part, measured_values, registered

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from lgdist_scvi.pl._spots import Section

_UNIT = "log1p(counts per 10,000)"
_STD_COLOURS = "magma"
_WITH_STD = "model.add_completed_layer(return_std=True)"
_TOP_PERCENTILE = 99.5  # a few extreme spots must not darken the map


def completion(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    layer: str = Keys.LAYER,
    measured_layer: str | None = None,
    observed_layer: str | None = None,
    size_factor_key: str | None = None,
    uncertainty: bool = False,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    library_id: Hashable | list[Hashable] | None = None,
    img: bool = True,
    img_alpha: float = 1.0,
    spot_size: float | None = None,
    scalebar_dx: float | None = None,
    cmap: str = "viridis",
    axes: Any = None,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw measured beside completed expression, and how uncertain this is: one row per gene and section.

    The measured map shows ``log1p(counts / depth * 10,000)``, the default scale of completed expression, in the same colours as
    the completed one. The standard deviation of the completed values has a scale of its own. Each gene has its scales, the
    same in all sections. Entries without a value are grey.

    Parameters
    ----------
    adata
        Annotated spots.
    genes
        Names of the genes.
    layer
        Layer with the completed expression, on the scale ``"log1p"`` (log1p of counts per 10,000).
    measured_layer
        Layer with the counts. What is not given of this and the next two is that of the registration of the model, kept in
        ``uns[layer]``; without any, ``X``.
    observed_layer
        Boolean layer, True where the entry was observed; without any, all were.
    size_factor_key
        Column of ``obs`` with the depth of the spots; without any, the sum of the observed counts.
    uncertainty
        Draw the standard deviations as well, from the layer that ``add_completed_layer(return_std=True)`` wrote beside `layer`.
    spatial_key
        Key of the positions in ``obsm``, with y downwards as in an image.
    library_key
        Column of ``obs`` with the sections; by default that of the registration.
    library_id
        Section or list of sections to draw; all by default.
    img
        Draw the image of the section in ``uns["spatial"]`` below the spots, if there is one.
    img_alpha
        Opacity of the image, from 0 to 1.
    spot_size
        Diameter of a spot in the unit of the positions. By default that of the scale factors if the image is drawn,
        else the median distance to the nearest spot.
    scalebar_dx
        Micrometres per unit of the positions, for the scale bar; for Visium 100 divided by the distance of neighbouring spots. By
        default that of the scale factors (``microns_per_pixel``); where there is none, no bar is drawn.
    cmap
        Matplotlib colour map.
    axes
        Matplotlib axes, two per gene and section in row order, three with `uncertainty`; None makes a new figure.
    save
        File for the figure, such as "map.png" or "map.pdf"; None saves nothing. Bitmaps have 300 dots per inch.

    Returns
    -------
    The axes, ``(n_panels, 2)`` or ``(n_panels, 3)``: one row per gene and section, grouped by gene.

    Raises
    ------
    KeyError
        If a gene, layer or key is missing.
    ValueError
        If a section is unknown, the layer is on another scale, or the number of axes does not fit.
    TypeError
        If a layer is neither an array nor a CSR or CSC matrix.
    FileNotFoundError
        If the folder of `save` does not exist.

    Examples
    --------
    >>> model.add_completed_layer(return_std=True)
    >>> axes = lgdist_scvi.pl.completion(adata, ["gene_1", "gene_2"])
    >>> axes.shape
    (2, 2)
    >>> axes = lgdist_scvi.pl.completion(adata, "gene_1", uncertainty=True, scalebar_dx=1.0, save="gene_1.png")
    >>> axes.shape
    (1, 3)
    """
    chosen = _gene_index(adata, genes)
    library_key = registered(adata, layer, "library_key", library_key)
    measured_layer = registered(adata, layer, "layer", measured_layer)
    observed_layer = registered(adata, layer, "observed_layer", observed_layer)
    size_factor_key = registered(adata, layer, "size_factor_key", size_factor_key)
    sections = sections_of(adata, spatial_key, library_key, library_id, img)
    spots = np.concatenate([section.spots for section in sections])
    completed = _columns(adata, layer, spots, chosen, "model.add_completed_layer(adata)")
    measured = measured_values(adata, measured_layer, observed_layer, size_factor_key, spots, chosen)
    shown = {"measured": measured, "completed": completed}
    if uncertainty:
        shown["uncertainty"] = _columns(adata, f"{layer}{STD_SUFFIX}", spots, chosen, _WITH_STD)
    panels = axes_grid(axes, len(chosen) * len(sections), len(shown), panel_size(sections, 2))
    for number, gene in enumerate(adata.var_names[chosen]):
        of_gene = {title: values[:, number] for title, values in shown.items()}
        limits = _limits(np.r_[of_gene["measured"], of_gene["completed"]])
        rows = panels[number * len(sections) : (number + 1) * len(sections)]
        for row, section, *parts in zip(rows, sections, *(_split(v, sections) for v in of_gene.values()), strict=True):
            for ax, values, title in zip(row, parts, shown, strict=True):
                if title == "uncertainty":
                    _draw_std(
                        ax, section, values, _limits(of_gene[title]), spot_size, _STD_COLOURS, img_alpha, scalebar_dx
                    )
                else:
                    drawn = draw_spots(ax, section, values, limits, spot_size, cmap, img_alpha, scalebar_dx)
                ax.set_title(f"{gene}, {title}{section.suffix}")
            colour_bar(drawn, row[:2], np.concatenate(parts[:2]), _UNIT)
    save_figure(panels, save)
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
    scalebar_dx: float | None = None,
    cmap: str = _STD_COLOURS,
    axes: Any = None,
    save: str | Path | None = None,
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
    spatial_key, library_key, library_id, img, img_alpha, spot_size, scalebar_dx, cmap
        As for :func:`completion`.
    axes
        Matplotlib axes, one per section and gene in row order; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes, ``(n_sections, n_genes)``.

    Raises
    ------
    KeyError
        If a gene, layer or key is missing.
    ValueError
        If a section is unknown, the layer is on another scale, or the number of axes does not fit.
    FileNotFoundError
        If the folder of `save` does not exist.

    Examples
    --------
    >>> model.add_completed_layer(return_std=True)
    >>> axes = lgdist_scvi.pl.uncertainty(adata, "gene_1")
    """
    chosen = _gene_index(adata, genes)
    library_key = registered(adata, layer.removesuffix(STD_SUFFIX), "library_key", library_key)
    sections = sections_of(adata, spatial_key, library_key, library_id, img)
    spots = np.concatenate([section.spots for section in sections])
    std = _columns(adata, layer, spots, chosen, _WITH_STD)
    panels = axes_grid(axes, len(sections), len(chosen), panel_size(sections, 1))
    for column, gene, values in zip(panels.T, adata.var_names[chosen], std.T, strict=True):
        limits = _limits(values)
        for ax, section, part in zip(column, sections, _split(values, sections), strict=True):
            _draw_std(ax, section, part, limits, spot_size, cmap, img_alpha, scalebar_dx)
            ax.set_title(f"{gene}{section.suffix}")
    save_figure(panels, save)
    return panels


def _draw_std(ax: Axes, section: Section, values: NDArray[np.float64], *how: Any) -> None:
    """Draw standard deviations with a colour bar of their own."""
    colour_bar(draw_spots(ax, section, values, *how), [ax], values, f"standard deviation of\n{_UNIT}")


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


def _split(values: NDArray[np.float64], sections: list[Section]) -> list[NDArray[np.float64]]:
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
