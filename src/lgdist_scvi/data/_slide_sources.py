"""Sources of images: an AnnData, files, arrays, a SpatialData object."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._checks import check_label, check_positive

from ._image_files import Opened, check_pixels, open_image
from ._regions import annotating_table, regions
from ._slides import Slide
from ._validation import check_obs_column, check_positions

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from ._regions import Region

PATCH_SIZE = 4.0
"""Side of a patch in spot diameters: the spot and its surroundings."""


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
    sizes = {"spot_diameter": spot_diameter, "microns_per_pixel": microns_per_pixel}
    check_positive(patch_size=patch_size, scale=scale, **{n: value for n, value in sizes.items() if value is not None})
    if hasattr(data, "tables"):
        others = {"image_key": image_key, "library_key": library_key, "spot_diameter": spot_diameter}
        if given := [name for name, value in others.items() if value is not None] + ["scale"] * (scale != 1.0):
            raise ValueError(
                f"{', '.join(given)} do not apply to a SpatialData object, which has regions, shapes and transformations; "
                "leave them out."
            )
        table, annotated, _ = annotating_table(data, table_key)
        slides = _slides_of_spatialdata(data, table, annotated, image=image, microns_per_pixel=microns_per_pixel)
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


def placed(adata: AnnData, spatial_key: str, library_key: str | None) -> NDArray[np.float64]:
    """Positions x and y of the spots, ``(n_spots, 2)``, each of a known library.

    Raises
    ------
    KeyError, TypeError, ValueError
        If positions or libraries are missing, or not what they must be.
    """
    check_label(library_key=library_key, spatial_key=spatial_key)
    check_obs_column(adata, library_key, "library_key")
    return check_positions(adata, spatial_key)[:, :2].astype(np.float64)


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
    check_label(image_key=image_key)
    positions = placed(adata, spatial_key, library_key)
    known = dict(adata.uns.get("spatial", {}))
    if library_key is None:
        if len(known) > 1:
            raise ValueError(
                f"adata.uns['spatial'] has images of several sections: {list(known)}; pass library_key=..., the obs column "
                "with the section of each spot."
            )
        libraries = {next(iter(known), "section"): np.arange(adata.n_obs)}
    else:
        groups = adata.obs.groupby(library_key, observed=True, sort=False).indices
        libraries = {str(name): np.asarray(rows) for name, rows in groups.items()}
    given = image if isinstance(image, Mapping) else dict.fromkeys(libraries, image)
    if image is not None and not isinstance(image, Mapping) and len(libraries) > 1:
        raise ValueError(
            f"image=... is one image, but there are several libraries, {list(libraries)}; pass a dictionary by library."
        )
    if unknown := [name for name in given if name not in libraries]:
        raise KeyError(
            f"image=... names {unknown}, which are not libraries (found: {list(libraries)}); correct the names."
        )
    slides, without = [], []
    for name, rows in libraries.items():
        entry = known.get(name, {})
        factors = entry.get("scalefactors", {})
        if given.get(name) is not None:
            opened, factor = open_image(given[name]), scale
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
            opened = Opened(entry["images"][key], f"uns['spatial'] {key}", None)
            factor = float(factors[f"tissue_{key}_scalef"])
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
                opened.name,
                rows,
                check_pixels(opened).pixels,
                positions[rows] * factor,
                None if diameter is None else float(diameter) * factor,
                None if microns is None else float(microns) / factor,
                opened.full,
            )
        )
    _report_missing(slides, without, "adata.uns['spatial'][library]['images'], or pass image=...")
    return slides


def _slides_of_spatialdata(
    sdata: SpatialData, table: AnnData, annotated: list[str], *, image: Any, microns_per_pixel: float | None
) -> list[Slide]:
    """Images of the regions that a table annotates, placed by their transformations."""
    from spatialdata import get_pyramid_levels

    given = image if isinstance(image, Mapping) else dict.fromkeys(annotated, image)
    if unknown := [name for name in given if name not in annotated]:
        raise KeyError(
            f"image=... names {unknown}, which are not regions of the table (found: {annotated}); correct the names."
        )
    slides, without = [], []
    for region in regions(sdata, table, annotated):
        name = given.get(region.name)
        if name is None and (name := _only_image(sdata, region)) is None:
            without.append(region.name)
            continue
        if not isinstance(name, str):
            raise TypeError(
                f"image=... must be the name of an image of the SpatialData (found: {list(sdata.images)}), or a "
                f"dictionary of names by region; it is {type(name).__name__}."
            )
        if name not in sdata.images:
            raise KeyError(f"sdata.images has no {name!r} (found: {list(sdata.images)}); correct image=...")
        element = sdata.images[name]
        matrix = _to_pixels(sdata, region, name)
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        pixels = element if hasattr(element, "transpose") else get_pyramid_levels(element, n=0)
        slides.append(
            Slide(
                region.name,
                name,
                region.rows,
                check_pixels(Opened(pixels.transpose("y", "x", "c").data, name, None)).pixels,
                region.centers @ matrix[:2, :2].T + matrix[:2, 2],
                region.diameter * scale,
                None if microns_per_pixel is None else microns_per_pixel / scale,
            )
        )
    _report_missing(slides, without, "sdata.images in the coordinate system of the region, or pass image=...")
    return slides


def _only_image(sdata: SpatialData, region: Region) -> str | None:
    from spatialdata.transformations import get_transformation

    systems = set(get_transformation(sdata.shapes[region.name], get_all=True))
    shared = [name for name, image in sdata.images.items() if systems & set(get_transformation(image, get_all=True))]
    if len(shared) > 1:
        raise ValueError(f"Several images share a coordinate system with a region: {shared}; choose one with image=...")
    return shared[0] if shared else None


def _to_pixels(sdata: SpatialData, region: Region, name: str) -> NDArray[np.float64]:
    """Matrix from coordinates of shapes to pixels of an image, through a shared coordinate system."""
    from spatialdata.transformations import Sequence, get_transformation

    elements = sdata.shapes[region.name], sdata.images[name]
    placed, images = (get_transformation(element, get_all=True) for element in elements)
    shared = [system for system in placed if system in images]
    if not shared:
        raise ValueError(
            f"The image {name!r} (coordinate systems {list(images)}) and the region {region.name!r} ({list(placed)}) "
            "share no coordinate system; choose another image with image=..., or set a transformation."
        )
    path = Sequence([placed[shared[0]], images[shared[0]].inverse()])
    return path.to_affine_matrix(("x", "y"), ("x", "y"))


def _report_missing(slides: list[Slide], without: list[str], where: str) -> None:
    if not slides:
        raise KeyError(f"There is no image for any of {without}; expected in {where}")
    if without:
        warnings.warn(
            f"There is no image for {without}: their spots get NaN, and the model takes them as spots without an image.",
            UserWarning,
            stacklevel=5,
        )
