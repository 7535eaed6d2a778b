"""Images of sections: where the spots lie in them, and patches cut around the spots."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ._entries import spot_listing

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

PATCH_SIZE = 4.0
"""Side of a patch in spot diameters: the spot and what surrounds it."""
# Regions are read from the image one square of this side (in pixels) at a time, so a large image stays on disk.
_TILE = 2048
# Spots that fill less of the image than this, along both sides, were placed by a wrong scale factor; or perhaps were.
_LEAST_EXTENT, _SMALL_EXTENT = 0.05, 0.25


@dataclass(frozen=True)
class Slide:
    """The image of a section, and where its spots lie in it."""

    library: str
    """Name of the section."""
    source: str
    """Where the image is from."""
    rows: NDArray[np.int64]
    """Spots of the section, ``(n,)``."""
    image: Any
    """Pixels, ``(y, x)`` or ``(y, x, c)``: anything that slices like an array, so it may lie on disk."""
    centers: NDArray[np.float64]
    """Positions x and y of the spots in pixels of the image, ``(n, 2)``."""
    diameter: float | None
    """Spot diameter in pixels of the image."""
    microns_per_pixel: float | None
    """Size of a pixel of the image in micrometres."""

    @cached_property
    def full_scale(self) -> float:
        """Value of full brightness: that of a type made for images, else 1 (floats only), 255 or 65535 by the values."""
        dtype = np.dtype(self.image.dtype)
        if dtype.kind not in "iuf":
            return 1.0
        if dtype.kind == "u" and dtype.itemsize <= 2:
            return float(np.iinfo(dtype).max)
        step = max(1, max(self.image.shape[:2]) // 512)
        largest = np.nanmax(np.asarray(self.image[::step, ::step]))
        # Interpolation may exceed full brightness a little.
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
            If the size of a spot or of a pixel is not known, or if the patch would be smaller than two pixels.
        """
        if unit == "spot":
            if self.diameter is None:
                raise ValueError(
                    f"The spot diameter of {self.library!r} is not known; pass spot_diameter=..., in full-resolution "
                    "pixels (the unit of the positions), or scalefactors['spot_diameter_fullres']."
                )
            side = size * self.diameter
        else:
            if self.microns_per_pixel is None:
                raise ValueError(
                    f"The size of a pixel of {self.library!r} is not known; pass microns_per_pixel=..., of the "
                    "full-resolution image (the unit of the positions), or give patch_size in spot diameters."
                )
            side = size / self.microns_per_pixel
        if not side >= 2:
            raise ValueError(
                f"A patch of patch_size={size} would be {side:.2g} pixels wide in the image {self.source} of "
                f"{self.library!r}; use an image of higher resolution or larger patches."
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
            If not, naming the spots.
        """
        height, width = self.image.shape[:2]
        x, y = self.centers.T
        remedy = (
            "the positions, the image or its scale factor do not belong together: check image_key=..., scale=... and "
            "the scale factors (the transformations, for a SpatialData)"
        )
        outside = ~((x >= 0) & (x < width) & (y >= 0) & (y < height))
        if outside.any():
            raise ValueError(
                f"{outside.sum()} of the {len(x)} spots of {self.library!r} lie outside its image {self.source} "
                f"({width} x {height} pixels): {', '.join(map(repr, names[self.rows[outside]][:5]))}. Either {remedy}; "
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
            warnings.warn(f"{message}; perhaps {remedy}.", UserWarning, stacklevel=4)

    def batches(self, side: float, batch_size: int) -> list[NDArray[np.int64]]:
        """Numbers of the spots in batches that lie together, so that each needs only a piece of the image.

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
        """Cut a square around spots; beyond the image its edge is repeated.

        Parameters
        ----------
        spots
            Numbers of the spots among those of the section, ``(b,)``.
        side
            Side of the squares in pixels of the image.
        n_pixels
            Pixels to which each side is resampled.

        Returns
        -------
        Red, green and blue from 0 to 1, ``(b, 3, n_pixels, n_pixels)``.
        """
        height, width = self.image.shape[:2]
        n = max(2, round(side))
        start = np.floor(self.centers[spots] - n / 2 + 0.5).astype(np.int64)
        (x0, y0), (x1, y1) = start.min(axis=0).clip(0), start.max(axis=0) + n
        region = np.asarray(self.image[y0:y1, x0:x1])
        offsets = np.arange(n)
        patches = []
        for x, y in start:
            rows, columns = (y + offsets).clip(0, height - 1) - y0, (x + offsets).clip(0, width - 1) - x0
            patches.append(_resampled(_rgb(region[rows][:, columns], self.full_scale), n_pixels))
        return torch.cat(patches)


def open_slides(
    data: AnnData | SpatialData,
    *,
    image: Any = None,
    image_key: str | None = None,
    library_key: str | None = None,
    table_key: str = "table",
    spatial_key: str = "spatial",
    patch_size: float = PATCH_SIZE,
    unit: str = "spot",
    scale: float = 1.0,
    spot_diameter: float | None = None,
    microns_per_pixel: float | None = None,
) -> tuple[AnnData, list[tuple[Slide, float]]]:
    """Open the images of all sections and check that the spots lie in them.

    Arguments and errors are those of :func:`~lgdist_scvi.pp.image_embeddings`.

    Returns
    -------
    The table of the spots, and each slide with the side of a patch in pixels of its image.
    """
    if unit not in ("spot", "um"):
        raise ValueError(f"unit={unit!r} is unknown; choose 'spot' or 'um'.")
    for name, value in (("patch_size", patch_size), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive.")
    if hasattr(data, "tables"):
        others = {"image_key": image_key, "library_key": library_key, "spot_diameter": spot_diameter}
        if given := [name for name, value in others.items() if value is not None] + ["scale"] * (scale != 1.0):
            raise ValueError(
                f"{', '.join(given)} do not apply to a SpatialData object: regions, shapes and transformations tell."
            )
        table = data.tables.get(table_key)
        slides = _slides_of_spatialdata(data, image=image, table_key=table_key, microns_per_pixel=microns_per_pixel)
    else:
        table = data
        slides = _slides_of_anndata(
            data,
            image=image,
            image_key=image_key,
            library_key=library_key,
            spatial_key=spatial_key,
            scale=scale,
            spot_diameter=spot_diameter,
            microns_per_pixel=microns_per_pixel,
        )
    sides = [slide.side(patch_size, unit) for slide in slides]
    for slide in slides:
        slide.check(table.obs_names.to_numpy())
    return table, list(zip(slides, sides, strict=True))


def _slides_of_anndata(
    adata: AnnData,
    *,
    image: Any,
    image_key: str | None,
    library_key: str | None,
    spatial_key: str,
    scale: float,
    spot_diameter: float | None,
    microns_per_pixel: float | None,
) -> list[Slide]:
    """Images of the sections of an AnnData; arguments of :func:`~lgdist_scvi.pp.image_embeddings`."""
    if spatial_key not in adata.obsm:
        raise KeyError(f"adata.obsm[{spatial_key!r}] is missing (found: {list(adata.obsm)}); correct spatial_key=...")
    if library_key is not None and library_key not in adata.obs:
        raise KeyError(f"adata.obs[{library_key!r}] is missing (found: {list(adata.obs)}); correct library_key=...")
    if library_key is not None and (absent := adata.obs[library_key].isna().to_numpy()).any():
        raise ValueError(f"adata.obs[{library_key!r}] is NaN for {spot_listing(adata, absent)}; fill it in.")
    positions = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] not in (2, 3):
        raise ValueError(
            f"adata.obsm[{spatial_key!r}] has shape {positions.shape}; positions must be ({adata.n_obs}, 2) or "
            f"({adata.n_obs}, 3), x and y (and z) of every spot."
        )
    positions = positions[:, :2]
    finite = np.asarray(np.isfinite(positions).all(axis=1))
    if not finite.all():
        raise ValueError(f"adata.obsm[{spatial_key!r}] is not finite for {spot_listing(adata, ~finite)}; correct it.")
    known = dict(adata.uns.get("spatial", {}))
    if library_key is None:
        if len(known) > 1:
            raise ValueError(
                f"adata.uns['spatial'] has the images of {list(known)}; say which spot is of which by library_key=..."
            )
        libraries = {next(iter(known), "section"): np.arange(adata.n_obs)}
    else:
        groups = adata.obs.groupby(library_key, observed=True, sort=False).indices
        libraries = {str(name): np.asarray(rows) for name, rows in groups.items()}
    given = image if isinstance(image, Mapping) else dict.fromkeys(libraries, image)
    if image is not None and not isinstance(image, Mapping) and len(libraries) > 1:
        raise ValueError(f"image=... is one image, and there are the libraries {list(libraries)}; pass a dictionary.")
    if unknown := [name for name in given if name not in libraries]:
        raise KeyError(f"image=... names {unknown}, which are no libraries (found: {list(libraries)}).")
    slides, without = [], []
    for name, rows in libraries.items():
        entry = known.get(name, {})
        factors = entry.get("scalefactors", {})
        if given.get(name) is not None:
            pixels, source, factor = *_open_image(given[name]), scale
        elif image is None and entry.get("images"):
            key = image_key or max(entry["images"], key=lambda k: factors.get(f"tissue_{k}_scalef", 0))
            if key not in entry["images"]:
                raise KeyError(
                    f"adata.uns['spatial'][{name!r}]['images'] has no {key!r} (found: {list(entry['images'])}); correct "
                    "image_key=..., or pass the image as image=..."
                )
            if f"tissue_{key}_scalef" not in factors:
                raise KeyError(
                    f"adata.uns['spatial'][{name!r}]['scalefactors'] has no 'tissue_{key}_scalef' (found: "
                    f"{list(factors)}); add it, or pass the image as image=... with scale=..."
                )
            pixels, source, factor = (
                entry["images"][key],
                f"uns['spatial'] {key}",
                float(factors[f"tissue_{key}_scalef"]),
            )
        else:
            without.append(name)
            continue
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"The scale factor of the image of {name!r} is {factor}; it must be a positive number.")
        diameter = spot_diameter or factors.get("spot_diameter_fullres")
        microns = microns_per_pixel or factors.get("microns_per_pixel")
        slides.append(
            Slide(
                name,
                source,
                rows,
                _checked_image(pixels, source),
                positions[rows] * factor,
                None if diameter is None else float(diameter) * factor,
                None if microns is None else float(microns) / factor,
            )
        )
    _report_missing(slides, without, "adata.uns['spatial'][library]['images'], or pass image=...")
    return slides


def _slides_of_spatialdata(
    sdata: SpatialData, *, image: Any, table_key: str, microns_per_pixel: float | None
) -> list[Slide]:
    """Images of the regions that a table annotates, through their transformations."""
    from spatialdata import get_pyramid_levels
    from spatialdata.models import get_table_keys

    if table_key not in sdata.tables:
        raise KeyError(f"sdata.tables has no {table_key!r} (found: {list(sdata.tables)}); correct table_key=...")
    table = sdata.tables[table_key]
    regions, region_key, instance_key = get_table_keys(table)
    regions = [regions] if isinstance(regions, str) else list(regions)
    given = image if isinstance(image, Mapping) else dict.fromkeys(regions, image)
    if unknown := [name for name in given if name not in regions]:
        raise KeyError(f"image=... names {unknown}, which are no regions of the table (found: {regions}).")
    slides, without = [], []
    for region in regions:
        rows = np.flatnonzero(table.obs[region_key].to_numpy() == region)
        if not len(rows):
            continue
        if region not in sdata.shapes:
            raise KeyError(f"sdata.shapes has no {region!r}, a region of the table (found: {list(sdata.shapes)}).")
        shapes = sdata.shapes[region]
        name = given.get(region)
        if name is None and (name := _only_image(sdata, shapes)) is None:
            without.append(region)
            continue
        if not isinstance(name, str):
            raise TypeError(
                f"image=... must be the name of an image of the SpatialData (found: {list(sdata.images)}), or a "
                f"dictionary of names by region; it is {type(name).__name__}."
            )
        if name not in sdata.images:
            raise KeyError(f"sdata.images has no {name!r} (found: {list(sdata.images)}); correct image=...")
        instances = table.obs[instance_key].to_numpy()[rows]
        if missing := sorted(set(instances) - set(shapes.index)):
            raise ValueError(f"{region!r} lacks {len(missing)} spots of the table: {missing[:5]}.")
        element = sdata.images[name]
        matrix = _to_pixels(region, shapes, name, element)
        shapes = shapes.loc[instances]
        centroid = shapes.geometry.centroid
        points = np.column_stack([centroid.x, centroid.y, np.ones(len(rows))])
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        radius = shapes["radius"] if "radius" in shapes else np.sqrt(shapes.geometry.area / np.pi)
        pixels = element if hasattr(element, "transpose") else get_pyramid_levels(element, n=0)
        slides.append(
            Slide(
                region,
                name,
                rows,
                _checked_image(pixels.transpose("y", "x", "c").data, name),
                (points @ matrix.T)[:, :2],
                2 * float(np.median(radius)) * scale,
                None if microns_per_pixel is None else microns_per_pixel / scale,
            )
        )
    _report_missing(slides, without, "sdata.images in the coordinate system of the region, or pass image=...")
    return slides


def _open_image(image: Any) -> tuple[Any, str]:
    """Open an image file, lazily if it is a TIFF, or take an array as it is; return it and its name.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is not there or not an image.
    """
    if not isinstance(image, str | Path):
        return image, "array"
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"The image {path} does not exist; correct image=...")
    try:
        if path.suffix.lower() in (".tif", ".tiff", ".btf", ".svs", ".ndpi"):
            import tifffile
            import zarr

            store = zarr.open(tifffile.imread(path, aszarr=True, level=0), mode="r")
            return _channels_last(store), path.name
        from PIL import Image

        # A whole slide has more pixels than what Pillow takes for an attack.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path) as opened:
                plain = opened.mode in ("1", "L", "RGB", "RGBA") or opened.mode.startswith(("I", "F"))
                return np.asarray(opened if plain else opened.convert("RGBA")), path.name
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    except Exception as error:
        raise ValueError(f"{path} could not be read as an image ({error}); pass a TIFF, PNG or JPEG file.") from error


def _checked_image(image: Any, source: str) -> Any:
    """Check that an array is an image, ``(y, x)`` or ``(y, x, c)`` with 1, 3 or 4 channels.

    Raises
    ------
    ValueError
        If it is not.
    """
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ValueError(
            f"The image {source} has shape {shape}; it must be (height, width) or (height, width, channels) with 1 "
            "(grey), 3 (RGB) or 4 (RGBA) channels."
        )
    return image


def _only_image(sdata: SpatialData, shapes: Any) -> str | None:
    from spatialdata.transformations import get_transformation

    systems = set(get_transformation(shapes, get_all=True))
    shared = [name for name, image in sdata.images.items() if systems & set(get_transformation(image, get_all=True))]
    if len(shared) > 1:
        raise ValueError(f"Several images share a coordinate system with a region: {shared}; choose by image=...")
    return shared[0] if shared else None


def _to_pixels(region: str, shapes: Any, name: str, image: Any) -> NDArray[np.float64]:
    """Matrix from coordinates of shapes to pixels of an image, by a coordinate system that both are in."""
    from spatialdata.transformations import Sequence, get_transformation

    placed, images = get_transformation(shapes, get_all=True), get_transformation(image, get_all=True)
    shared = [system for system in placed if system in images]
    if not shared:
        raise ValueError(
            f"The image {name!r}, in the coordinate systems {list(images)}, and the region {region!r}, in "
            f"{list(placed)}, share none; choose another by image=... or set a transformation."
        )
    path = Sequence([placed[shared[0]], images[shared[0]].inverse()])
    return path.to_affine_matrix(("x", "y"), ("x", "y"))


def _report_missing(slides: list[Slide], without: list[str], where: str) -> None:
    if not slides:
        raise KeyError(f"There is no image for any of {without}; expected in {where}")
    if without:
        warnings.warn(
            f"There is no image for {without}, whose spots get NaN: the model takes them as spots without an image.",
            UserWarning,
            stacklevel=5,
        )


def _channels_last(image: Any) -> Any:
    if len(image.shape) == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        return np.moveaxis(np.asarray(image), 0, 2)
    return image


def _rgb(patch: NDArray, full: float) -> torch.Tensor:
    """Red, green and blue from 0 to 1, ``(1, 3, y, x)``; what is transparent is white."""
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
