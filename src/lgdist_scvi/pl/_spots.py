"""Spots of sections on a page: their image below them, a scale bar, a colour bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import KDTree

from lgdist_scvi.data._entries import listing

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

NO_VALUE = "0.85"  # light grey, absent from the usual colour maps
_LONGEST_BAR, _BAR_WIDTH = 0.3, 0.008  # of a scale bar, as shares of the panel's width and height


@dataclass(frozen=True)
class Section:
    """Spots of a section, their suffix in titles, and the image below them."""

    spots: NDArray[np.intp]
    positions: NDArray[np.float64]
    suffix: str = ""
    image: NDArray | None = None
    scale: float = 1.0
    """Pixels of the image per unit of the positions."""
    diameter: float | None = None
    """Diameter of a spot, in the unit of the positions."""
    microns: float | None = None
    """Micrometres per unit of the positions, where they are known."""


def sections_of(
    adata: AnnData,
    spatial_key: str,
    library_key: str | None,
    library_id: Hashable | list[Hashable] | None,
    img: bool,
) -> list[Section]:
    """Sections to draw, with their images if requested and available."""
    if spatial_key not in adata.obsm:
        raise KeyError(f"adata.obsm[{spatial_key!r}] is missing (found: {sorted(adata.obsm)}); correct spatial_key=...")
    positions = np.asarray(adata.obsm[spatial_key], dtype=np.float64)[:, :2]
    entries = adata.uns.get("spatial", {})
    if library_key is None:
        if library_id is not None:
            raise ValueError(f"library_id={library_id!r} needs library_key=..., the obs column with the sections.")
        entry = next(iter(entries.values())) if len(entries) == 1 else {}
        return [Section(np.arange(adata.n_obs), positions, **_of_slide(entry, img))]
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
        sections.append(Section(spots, positions[spots], suffix, **_of_slide(entries.get(str(name), {}), img)))
    return sections


def _of_slide(entry: Mapping[str, Any], img: bool) -> dict[str, Any]:
    """What is known of the slide of a section: the size of a pixel, and if requested the image of highest resolution."""
    factors = entry.get("scalefactors", {})
    known = {"microns": factors.get("microns_per_pixel")}
    scales = {
        key: factors[f"tissue_{key}_scalef"] for key in entry.get("images", {}) if f"tissue_{key}_scalef" in factors
    }
    if not (img and scales):
        return known
    key = max(scales, key=scales.__getitem__)
    diameter = factors.get("spot_diameter_fullres")
    return known | {"image": np.asarray(entry["images"][key]), "scale": float(scales[key]), "diameter": diameter}


def panel_size(sections: list[Section], panels_per_bar: int) -> tuple[float, float]:
    """Width and height in inches of a panel for the first section and its share of a colour bar."""
    width, height = np.maximum(np.ptp(sections[0].positions, axis=0), 1e-12)
    return 3.2 + 1.0 / panels_per_bar, 3.2 * float(np.clip(height / width, 0.4, 2.0)) + 0.4


def draw_spots(
    ax: Axes,
    section: Section,
    values: NDArray[np.float64],
    limits: tuple[float, float],
    spot_size: float | None,
    cmap: str | Colormap,
    img_alpha: float,
    scalebar_dx: float | None,
) -> Collection:
    """Draw the image, the spots as discs scaled in the unit of the positions, and below them a scale bar if that unit is known."""
    import matplotlib as mpl
    from matplotlib.collections import EllipseCollection

    positions, apart = section.positions, _spacing(section.positions)
    size = spot_size or section.diameter or apart
    if section.image is not None:
        height, width = np.array(section.image.shape[:2]) / section.scale
        ax.imshow(section.image, extent=(0, width, height, 0), cmap="gray", alpha=img_alpha)
    discs = EllipseCollection(
        size, size, 0, units="xy", offsets=positions, offset_transform=ax.transData, linewidths=0, rasterized=True
    )
    discs.set_array(np.ma.masked_invalid(values))
    discs.set_cmap(mpl.colormaps[cmap].with_extremes(bad=NO_VALUE) if isinstance(cmap, str) else cmap)
    discs.set_clim(*limits)
    ax.add_collection(discs)
    low, high = positions.min(axis=0) - apart, positions.max(axis=0) + apart
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if microns := scalebar_dx or section.microns:
        _scale_bar(ax, float(microns))
    return discs


def _scale_bar(ax: Axes, microns: float) -> None:
    """Draw a bar of a round length below the right corner, where it hides no spot."""
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    longest = _LONGEST_BAR * float(np.ptp(ax.get_xlim())) * microns
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} \N{MICRO SIGN}m"
    bar = AnchoredSizeBar(
        ax.transData,
        length / microns,
        label,
        loc="upper right",
        bbox_to_anchor=(1, 0),
        bbox_transform=ax.transAxes,
        pad=0,
        borderpad=0.3,
        sep=2,
        frameon=False,
        size_vertical=_BAR_WIDTH * float(np.ptp(ax.get_ylim())),
        fill_bar=True,
        fontproperties={"size": "small"},
    )
    ax.add_artist(bar)


def _spacing(positions: NDArray[np.float64]) -> float:
    """Median distance to the nearest spot at another position."""
    apart = np.unique(positions, axis=0)
    if len(apart) < 2:
        return 1.0
    return float(np.median(KDTree(apart).query(apart, k=2)[0][:, 1]))


def colour_bar(drawn: Collection, axes: Sequence[Axes], values: NDArray[np.float64], label: str) -> None:
    """Add a colour bar beside axes; a pointed end marks values above the scale."""
    exceeds = bool(np.nanmax(values, initial=0.0) > drawn.get_clim()[1])
    figure = axes[0].figure
    figure.colorbar(drawn, ax=list(axes), label=label, extend="max" if exceeds else "neither", shrink=0.8)
