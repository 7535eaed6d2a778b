"""The image of a section: where the spots lie in it, and patches cut around them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The image is read in squares of this side (in pixels), so that a large image can stay on disk.
_TILE = 2048
# Share of the width or height of the image that the spots must span. Below the first the scale factor is taken to be
# wrong, below the second it may be.
_LEAST_EXTENT, _SMALL_EXTENT = 0.05, 0.25

_TWELVE = 1 << 12
_WIDEST = 4
"""Side of the largest patch, in sides of the image."""


@dataclass(frozen=True)
class Slide:
    """The image of a section, and where its spots lie in it."""

    library: str
    """Name of the section."""
    source: str
    """Origin of the image."""
    rows: NDArray[np.int64]
    """Spots of the section, ``(n_spots,)``."""
    image: Any
    """Pixels, ``(height, width)`` or ``(height, width, n_channels)``, in anything that slices like an array."""
    centers: NDArray[np.float64]
    """Positions x and y of the spots in pixels of the image, ``(n_spots, 2)``."""
    diameter: float | None
    """Spot diameter in pixels of the image."""
    microns_per_pixel: float | None
    """Size of a pixel of the image in micrometres."""
    full: float | None = None
    """Value of full brightness, where the file tells it."""

    @cached_property
    def full_scale(self) -> float:
        """Value of full brightness: as the file says; else the maximum of 8- or 16-bit types, 1 (floats), 255 or 65535 by the values."""
        if self.full is not None:
            return self.full
        dtype = np.dtype(self.image.dtype)
        if dtype.kind not in "iuf":
            return 1.0
        step = max(1, max(self.image.shape[:2]) // 512)
        if dtype.kind == "u" and dtype.itemsize <= 2:
            # Only of what is in memory: of a file this would read all tiles.
            if (
                dtype.itemsize == 2
                and isinstance(self.image, np.ndarray)
                and self.image[::step, ::step].max() < _TWELVE
            ):
                warnings.warn(
                    f"The image {self.source} of {self.library!r} has 16 bits and no value of {_TWELVE} or more: if it has "
                    "12 bits, it is taken for an almost black one; multiply it by 16.",
                    UserWarning,
                    stacklevel=4,
                )
            return float(np.iinfo(dtype).max)
        sample = np.asarray(self.image[::step, ::step])
        # Pixels that are not finite are refused where a spot needs them.
        largest = np.max(sample, where=np.isfinite(sample), initial=0)
        # Interpolation may slightly exceed full brightness.
        candidates = (1.0, 255.0, 65535.0) if dtype.kind == "f" else (255.0, 65535.0)
        return next((value for value in candidates if largest <= 1.5 * value), candidates[-1])

    def side(self, size: float, unit: str) -> float:
        """Side of a patch in pixels.

        Parameters
        ----------
        size
            Side in the given unit.
        unit
            "spot" for spot diameters, "um" for micrometres.

        Raises
        ------
        ValueError
            If the size of a spot or of a pixel is not known, or if the patch would be smaller than two pixels or much larger than the image.
        """
        if unit == "spot":
            if self.diameter is None:
                raise ValueError(
                    f"The spot diameter of {self.library!r} is not known; pass spot_diameter=..., in full-resolution "
                    "pixels (the unit of the positions), or set scalefactors['spot_diameter_fullres']."
                )
            side = size * self.diameter
        else:
            if self.microns_per_pixel is None:
                raise ValueError(
                    f"The size of a pixel of {self.library!r} is not known; pass microns_per_pixel=... of the "
                    "full-resolution image (the unit of the positions), or give patch_size in spot diameters."
                )
            side = size / self.microns_per_pixel
        if not side >= 2:
            raise ValueError(
                f"A patch of patch_size={size} would be {side:.2g} pixels wide in the image {self.source} of "
                f"{self.library!r}; use an image of higher resolution or larger patches."
            )
        if side > _WIDEST * (extent := max(self.image.shape[:2])):
            raise ValueError(
                f"A patch of patch_size={size} would be {side:.3g} pixels wide, and the image {self.source} of {self.library!r} has "
                f"only {extent}; correct patch_size=..., or the spot diameter and the scale of the image."
            )
        return side

    def check(self, names: NDArray) -> None:
        """Check that the spots lie in the image.

        Parameters
        ----------
        names
            Names of all spots of the table.

        Raises
        ------
        ValueError
            If spots lie outside, or all spots lie in a small part of the image.
        """
        height, width = self.image.shape[:2]
        x, y = self.centers.T
        remedy = (
            "check that positions, image and scale factor belong together: image_key=..., scale=... and the scale "
            "factors (for SpatialData, the transformations)"
        )
        outside = ~((x >= 0) & (x < width) & (y >= 0) & (y < height))
        if outside.any():
            raise ValueError(
                f"{outside.sum()} of the {len(x)} spots of {self.library!r} lie outside its image {self.source} "
                f"({width} x {height} pixels): {', '.join(map(repr, names[self.rows[outside]][:5]))}; {remedy}, "
                "or drop these spots."
            )
        extent = max(np.ptp(x) / width, np.ptp(y) / height) if len(x) > 1 else 1.0
        if extent < _SMALL_EXTENT:
            message = (
                f"All spots of {self.library!r} lie within {extent:.1%} of the width and height of its image "
                f"{self.source} ({width} x {height} pixels)"
            )
            if extent < _LEAST_EXTENT:
                raise ValueError(f"{message}; {remedy}.")
            warnings.warn(f"{message}; {remedy}.", UserWarning, stacklevel=4)

    def batches(self, side: float, batch_size: int) -> list[NDArray[np.int64]]:
        """Group nearby spots in batches, so that each batch needs only a piece of the image.

        Parameters
        ----------
        side
            Side of the patches in pixels of the image.
        batch_size
            Spots per batch, at most.
        """
        tile = np.floor(self.centers / max(_TILE, side)).astype(np.int64)
        order = np.lexsort((tile[:, 0], tile[:, 1]))
        _, first = np.unique(tile[order][:, ::-1], axis=0, return_index=True)
        return [
            batch
            for spots in np.split(order, first[1:])
            for batch in np.split(spots, range(batch_size, len(spots), batch_size))
        ]

    def cut(self, spots: NDArray[np.int64], side: float, n_pixels: int) -> torch.Tensor:
        """Cut a square around each spot; beyond the image, its edge pixels are repeated.

        Parameters
        ----------
        spots
            Numbers of the spots among those of the section, ``(n_spots,)``.
        side
            Side of the squares in pixels of the image.
        n_pixels
            Pixels to which each side is resampled.

        Returns
        -------
        Red, green and blue from 0 to 1, ``(n_spots, 3, n_pixels, n_pixels)``.
        """
        height, width = self.image.shape[:2]
        n = max(2, round(side))
        start = np.floor(self.centers[spots] - n / 2 + 0.5).astype(np.int64)
        (x0, y0), (x1, y1) = start.min(axis=0).clip(0), start.max(axis=0) + n
        region = self._read(slice(y0, y1), slice(x0, x1))
        offsets = np.arange(n)
        patches = []
        for x, y in start:
            rows, columns = (y + offsets).clip(0, height - 1) - y0, (x + offsets).clip(0, width - 1) - x0
            patches.append(_resampled(_rgb(region[rows][:, columns], self.full_scale), n_pixels))
        return torch.cat(patches)

    def _read(self, rows: slice, columns: slice) -> NDArray:
        """Pixels of a piece of the image.

        Raises
        ------
        ValueError
            If it cannot be read, is not finite, or is negative.
        """
        where = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
        try:
            region = np.asarray(self.image[rows, columns])
        except Exception as error:  # damaged bytes can raise any error
            raise ValueError(
                f"The image {self.source} of {self.library!r} cannot be read in {where} ({type(error).__name__}: {error}); it is "
                "damaged or truncated, so use a copy."
            ) from error
        if region.dtype.kind == "f" and not np.isfinite(region).all():
            raise ValueError(
                f"The image {self.source} of {self.library!r} has pixels that are NaN or infinite in {where}; set them to the "
                "value of the background."
            )
        # Interpolation may go slightly below.
        if region.dtype.kind in "if" and (least := region.min()) < -self.full_scale / 10:
            raise ValueError(
                f"The image {self.source} of {self.library!r} has negative pixels in {where}, such as {least}; pass brightness "
                "from 0, not what was standardised for a network."
            )
        return region


def _rgb(patch: NDArray, full: float) -> torch.Tensor:
    """Red, green and blue from 0 to 1, ``(1, 3, height, width)``; transparent pixels become white."""
    values = torch.from_numpy(np.ascontiguousarray(patch, dtype=np.float32)) / full
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha)
    return values.expand(-1, -1, 3).permute(2, 0, 1)[None].clamp(0, 1)


def _resampled(patch: torch.Tensor, n_pixels: int) -> torch.Tensor:
    if patch.shape[-1] >= n_pixels:
        return F.interpolate(patch, size=(n_pixels, n_pixels), mode="area")
    return F.interpolate(patch, size=(n_pixels, n_pixels), mode="bilinear", align_corners=False)
