"""Image files as the pixels that they show: what Pillow and tifffile know is converted, the rest is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lgdist_scvi._memory import require_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIFF = (".tif", ".tiff", ".btf", ".svs", ".ndpi")
# Pillow has one limit for all threads.
_OPENING = threading.Lock()
_REMEDY = "convert it to an RGB file of 8 bits, or pass its pixels as an array"


class Opened(NamedTuple):
    """The pixels of an image."""

    pixels: Any
    """Pixels, ``(height, width)`` or ``(height, width, n_channels)``, in anything that slices like an array."""
    name: str
    """Name of the image."""
    full: float | None
    """Value of full brightness, where the file tells it."""


def open_image(image: Any) -> Opened:
    """Open an image file, lazily if it is a plain TIFF, or take an array.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    MemoryError
        If the file must be read as a whole and would not fit.
    ValueError
        If the file is not an image, or stores its colours in a way that neither Pillow nor tifffile converts.
    """
    if not isinstance(image, str | Path):
        return Opened(image, "array", None)
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"The image {path} does not exist; correct image=...")
    try:
        opened = _open_tiff(path) if path.suffix.lower() in _TIFF else None
        return opened or Opened(_converted(path), path.name, None)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can raise any error
        raise ValueError(f"{path} could not be read as an image ({error}); pass a TIFF, PNG or JPEG file.") from error


def check_pixels(opened: Opened) -> Opened:
    """Check that an array is an image with 1, 3 or 4 channels of numbers.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    pixels, source, _ = opened
    if isinstance(pixels, np.ma.MaskedArray):
        raise TypeError(
            f"The image {source} is a masked array, whose mask would be lost; pass an array with .filled(value of the background)."
        )
    shape = tuple(getattr(pixels, "shape", ()))
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ValueError(
            f"The image {source} has shape {shape}; it must be (height, width) or (height, width, channels) with 1 "
            "(grey), 3 (RGB) or 4 (RGBA) channels."
        )
    if (dtype := np.dtype(pixels.dtype)).kind not in "buif":
        raise TypeError(f"The image {source} has pixels of the type {dtype}; convert them to numbers, such as uint8.")
    return opened


def _open_tiff(path: Path) -> Opened | None:
    """A TIFF whose pixels are stored as they are shown, opened lazily; None for one that Pillow has to convert."""
    import tifffile
    import zarr

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        colours, axes = tifffile.PHOTOMETRIC, series.axes
        if any(np.prod(other.shape) > np.prod(series.shape) for other in file.series[1:]):
            raise ValueError(f"it has {len(file.series)} pages, and the first is not the largest: {_REMEDY}")
        if axes not in ("YX", "YXS", "SYX", "CYX", "YXC"):
            raise ValueError(f"its axes are {axes} of sizes {series.shape}, and one page is needed: {_REMEDY}")
        orientation = page.tags.get("Orientation")
        turned = orientation is not None and int(orientation.value) != 1
        if turned or page.photometric in (colours.PALETTE, colours.SEPARATED):
            return None
        ycbcr = page.photometric == colours.YCBCR and page.compression in (6, 7)  # decoded with JPEG
        if page.photometric not in (colours.MINISBLACK, colours.MINISWHITE, colours.RGB) and not ycbcr:
            raise ValueError(f"its colours are {colours(page.photometric).name}, which are not converted: {_REMEDY}")
        full = _full_scale(page)
        inverted = page.photometric == colours.MINISWHITE
        if inverted:
            require_memory(series.nbytes, f"The image {path.name}", "Pass a smaller image.")
            whole = file.asarray(series=0, level=0)
            pixels = (full if full is not None else np.iinfo(whole.dtype).max) - whole
            return Opened(_channels_last(pixels, axes), path.name, full)
    return Opened(
        _channels_last(zarr.open(tifffile.imread(path, aszarr=True, level=0), mode="r"), axes), path.name, full
    )


def _full_scale(page: Any) -> float | None:
    """Value of full brightness, where it is less than the type of the pixels holds: 12 bits in 16."""
    bits = page.bitspersample[0] if isinstance(page.bitspersample, tuple) else page.bitspersample
    if page.dtype is None or page.dtype.kind != "u":
        return None
    tag = page.tags.get("MaxSampleValue")
    largest = 2**bits - 1 if tag is None else int(np.max(tag.value))
    return float(largest) if 1 < largest < np.iinfo(page.dtype).max else None


def _converted(path: Path) -> NDArray:
    """A file as Pillow shows it, turned as it is to be shown."""
    from PIL import Image, ImageOps

    # Whole slides exceed the size above which Pillow suspects a decompression bomb; the limit here is the memory.
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path) as opened:
                # Of the checksums, which loading does not look at; the file cannot be used afterwards.
                opened.verify()
            with Image.open(path) as opened:
                require_memory(4 * opened.width * opened.height, f"The image {path.name}", "Pass a smaller image.")
                opened.load()
                shown = ImageOps.exif_transpose(opened)
                plain = shown.mode in ("1", "L", "RGB", "RGBA") or shown.mode.startswith(("I", "F"))
                return np.asarray(shown if plain else shown.convert("RGBA"))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _channels_last(image: Any, axes: str) -> Any:
    if axes in ("SYX", "CYX"):
        return np.moveaxis(np.asarray(image), 0, 2)
    return image
