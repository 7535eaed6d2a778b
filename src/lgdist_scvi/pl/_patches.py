"""Patches of the tissue image, to check that spots and image belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi.data._entries import listing
from lgdist_scvi.data._slide_sources import open_slides
from lgdist_scvi.pl._axes import axes_grid, save_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_COLUMNS = 8
_COLOR = "#0072b2"  # a colour-blind safe blue, visible on pink tissue


def image_patches(
    data: AnnData | SpatialData,
    spots: int | Sequence[str] = 16,
    *,
    n_pixels: int = 128,
    seed: int = 0,
    axes: Any = None,
    save: str | Path | None = None,
    **options: Any,
) -> NDArray[np.object_]:
    """Draw the patches that :func:`~lgdist_scvi.pp.image_embeddings` would embed, with the outline of the spot.

    If spots, image and scale belong together, the patches agree with the expression of these spots: they show known
    landmarks, no glass and no fiducial frame.

    Parameters
    ----------
    data
        Annotated spots or SpatialData, as for :func:`~lgdist_scvi.pp.image_embeddings`.
    spots
        Names of spots, or number of spots to draw at random.
    n_pixels
        Pixels to which a patch is resampled.
    seed
        Seed of the choice of spots.
    axes
        Matplotlib axes, one per spot; None makes a new figure.
    save
        As for :func:`completion`.
    **options
        `image`, `image_key`, `library_key`, `table_key`, `spatial_key`, `patch_size`, `unit`, `scale`,
        `spot_diameter`, `microns_per_pixel`: as for :func:`~lgdist_scvi.pp.image_embeddings`.

    Returns
    -------
    The axes, ``(n_drawn,)``: one per spot, in rows of eight in a new figure.

    Raises
    ------
    MemoryError
        If an image would take more than half of the available memory.
    KeyError
        If a spot is unknown or has no image.
    KeyError, TypeError, ValueError
        If image, positions and scale do not match, there is no spot to draw, or the number of axes does not fit.
    FileNotFoundError
        If an image file, or the folder of `save`, does not exist.

    Examples
    --------
    >>> axes = lgdist_scvi.pl.image_patches(adata, spots=4)
    >>> axes.shape
    (4,)
    """
    from matplotlib.patches import Circle

    table, slides = open_slides(data, **options)
    with_image = np.concatenate([slide.rows for slide, _ in slides])
    if isinstance(spots, int | np.integer):
        chosen = np.sort(np.random.default_rng(seed).permutation(with_image)[:spots])
    else:
        chosen = table.obs_names.get_indexer(list(spots))
        if unknown := [name for name, row in zip(spots, chosen, strict=True) if row not in with_image]:
            raise KeyError(f"{len(unknown)} spots are unknown or have no image: {listing(unknown)}; correct spots=...")
    if not len(chosen):
        raise ValueError("There is no spot to draw; pass names or a positive number as spots=...")
    n_cols = min(_COLUMNS, len(chosen)) if axes is None else len(chosen)
    grid = axes_grid(axes, -(-len(chosen) // n_cols), n_cols, (1.4, 1.5)).ravel()
    for ax in grid[len(chosen) :]:
        ax.set_axis_off()
    for ax, row in zip(grid, chosen, strict=False):
        slide, side = next((slide, side) for slide, side in slides if row in slide.rows)
        patch = slide.cut(np.flatnonzero(slide.rows == row), side, n_pixels)[0]
        ax.imshow(patch.permute(1, 2, 0).numpy(), extent=(0, side, side, 0))
        if slide.diameter is not None:
            ax.add_patch(Circle((side / 2, side / 2), slide.diameter / 2, fill=False, color=_COLOR))
        ax.set_title(str(table.obs_names[row]), fontsize=7)
        ax.set(xticks=[], yticks=[])
    save_figure(grid, save)
    return grid[: len(chosen)]
