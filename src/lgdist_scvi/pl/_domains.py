"""Maps of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._constants import Keys
from lgdist_scvi.data._entries import listing
from lgdist_scvi.pl._axes import axes_grid, save_figure
from lgdist_scvi.pl._spots import NO_VALUE, draw_spots, panel_size, sections_of

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

_FEW = 10


def domains(
    adata: AnnData,
    key: str = Keys.DOMAINS,
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    library_id: Hashable | list[Hashable] | None = None,
    img: bool = True,
    img_alpha: float = 1.0,
    spot_size: float | None = None,
    scalebar_dx: float | None = None,
    axes: Any = None,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw the domains of each section, in the same colours in all of them.

    Parameters
    ----------
    adata
        Annotated spots.
    key
        Column of ``obs`` with the domains, as :func:`lgdist_scvi.tl.domains` writes it, or with any other groups. Spots without a value
        are grey.
    spatial_key, library_key, library_id, img, img_alpha, spot_size, scalebar_dx
        As for :func:`completion`.
    axes
        Matplotlib axes, one per section; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes, ``(1, n_sections)``.

    Raises
    ------
    KeyError
        If a key is missing.
    ValueError
        If a section is unknown, or the number of axes does not fit.
    FileNotFoundError
        If the folder of `save` does not exist.

    Examples
    --------
    >>> model.add_latent_representation()
    >>> lgdist_scvi.tl.domains(adata, n_domains=4)
    >>> axes = lgdist_scvi.pl.domains(adata, library_key="library_id")
    """
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    if key not in adata.obs:
        raise KeyError(
            f"adata.obs has no column {key!r} (found: {listing(list(adata.obs.columns))}); call lgdist_scvi.tl.domains(adata), or "
            "correct key=..."
        )
    column = adata.obs[key].astype("category").cat
    names = list(column.categories)
    numbers = np.where(column.codes >= 0, column.codes, np.nan)
    palette = mpl.colormaps["tab10" if len(names) <= _FEW else "gist_ncar"]
    shade = range(len(names)) if len(names) <= _FEW else np.linspace(0.02, 0.95, len(names))
    colours = [palette(one) for one in shade]
    sections = sections_of(adata, spatial_key, library_key, library_id, img)
    panels = axes_grid(axes, 1, len(sections), panel_size(sections, 1))
    for ax, section in zip(panels[0], sections, strict=True):
        limits = (-0.5, max(len(names), 1) - 0.5)
        shades = ListedColormap(colours or [NO_VALUE]).with_extremes(bad=NO_VALUE)
        draw_spots(ax, section, numbers[section.spots], limits, spot_size, shades, img_alpha, scalebar_dx)
        ax.set_title(f"{key}{section.suffix}")
    marks = [Patch(color=colour, label=str(name)) for colour, name in zip(colours, names, strict=True)]
    panels[0, -1].legend(handles=marks, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
    save_figure(panels, save)
    return panels
