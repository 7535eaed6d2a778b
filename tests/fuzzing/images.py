"""Images: what a file or an array shows, stored in many ways, and damaged."""

import numpy as np
import tifffile
from anndata import AnnData
from PIL import Image

from lgdist_scvi import pp

from .judge import Harmful, Misread, Silent

HEIGHT, WIDTH, N_SPOTS, SPOT = 96, 128, 40, 12


def colours(rng):
    """A picture whose every patch has a colour of its own."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    stain = 128 + 100 * np.sin(rows / 9 + rng.random() * 6) * np.cos(cols / 11)
    return np.stack([rows * 2, cols * 1.9, stain], axis=2).clip(0, 255).astype(np.uint8)


def mean(patches):
    return patches.mean(dim=(2, 3))


def embedded(image, positions, **options):
    adata = AnnData(np.ones((len(positions), 3), np.float32), obsm={"spatial": positions})
    options = {"spot_diameter": SPOT, "standardize": False, "patch_size": 1.0, "n_pixels": 8, "silent": True} | options
    pp.image_embeddings(adata, mean, image=image, **options)
    return adata.obsm["X_image"]


def grey(image):
    return np.asarray(Image.fromarray(image).convert("L"))


def saved(name, mode=None, **options):
    def write(path, image, rng):
        picture = Image.fromarray(image)
        picture = picture if mode is None else picture.convert(mode)
        picture.save(path.with_suffix(name), **options)
        return path.with_suffix(name), np.asarray(picture.convert("RGB"))

    return write


def tiff(change=lambda image: image, shown=lambda image: image, **options):
    def write(path, image, rng):
        tifffile.imwrite(path.with_suffix(".tif"), change(image), **options)
        return path.with_suffix(".tif"), shown(image)

    return write


def turned(path, image, rng):
    """As a camera stores it, with a note of how it is to be shown."""
    number = int(rng.integers(1, 9))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[number]
    picture = Image.fromarray(image)
    if back is not None:
        # Transposition that undoes that of the note.
        picture = picture.transpose({2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[number])
    noted = picture.getexif()
    noted[274] = number
    suffix = str(rng.choice([".png", ".tif", ".jpg"]))
    picture.save(
        path.with_suffix(suffix), exif=noted, **({"quality": 98, "subsampling": 0} if suffix == ".jpg" else {})
    )
    return path.with_suffix(suffix), image


def transparent(path, image, rng):
    alpha = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0)[None, :, None].repeat(HEIGHT, axis=0).astype(np.uint8)
    Image.fromarray(np.concatenate([image, alpha], axis=2), "RGBA").save(path.with_suffix(".png"))
    return path.with_suffix(".png"), np.where(alpha > 0, image, 255).astype(np.uint8)


def pages(path, image, rng):
    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        for page in ([image, image[::2, ::2]], [image[:20, :20], image], [image] * 3, [image, 255 - image])[
            rng.integers(4)
        ]:
            file.write(page, photometric="rgb")
    return path.with_suffix(".tif"), image


def pyramid(path, image, rng):
    with tifffile.TiffWriter(path.with_suffix(".ome.tif")) as file:
        file.write(image, subifds=1, photometric="rgb", tile=(32, 32))
        file.write(image[::2, ::2], subfiletype=1, photometric="rgb", tile=(32, 32))
    return path.with_suffix(".ome.tif"), image


def palette(path, image, rng):
    tifffile.imwrite(
        path.with_suffix(".tif"),
        255 - grey(image),
        photometric="palette",
        colormap=np.repeat((np.arange(255, -1, -1) * 257)[None], 3, axis=0).astype(np.uint16),
    )
    return path.with_suffix(".tif"), grey3(image)


def grey3(image):
    return np.repeat(grey(image)[..., None], 3, axis=2)


def wide(image):
    return image.astype(np.uint16) * 257


FILES = {
    "png": saved(".png"),
    "bmp": saved(".bmp"),
    "webp": saved(".webp", lossless=True),
    "jpeg": saved(".jpg", quality=98, subsampling=0),
    "grey png": saved(".png", "L"),
    "palette png": saved(".png", "P"),
    "bits": saved(".png", "1"),
    "cmyk jpeg": saved(".jpg", "CMYK", quality=98),
    "cmyk tiff": saved(".tif", "CMYK"),
    "grey and alpha": saved(".png", "LA"),
    "wrong suffix": lambda path, image, rng: (
        saved(".png")(path, image, rng)[0].rename(path.with_suffix(".tif")),
        image,
    ),
    "tiff": tiff(photometric="rgb"),
    "tiff deflate": tiff(photometric="rgb", compression="zlib", predictor=True),
    "tiff lzw": tiff(photometric="rgb", compression="lzw"),
    "tiff tiles": tiff(photometric="rgb", tile=(32, 48), compression="zlib"),
    "tiff big": tiff(photometric="rgb", bigtiff=True, byteorder=">"),
    "tiff planar": tiff(lambda image: image.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
    "tiff 16": tiff(wide, photometric="rgb"),
    "tiff float": tiff(lambda image: (image / 255).astype(np.float32), photometric="rgb"),
    "tiff double": tiff(lambda image: image / 255, photometric="rgb"),
    "tiff grey": tiff(grey, grey3, photometric="minisblack"),
    "tiff white": tiff(lambda image: 255 - grey(image), grey3, photometric="miniswhite"),
    "tiff lab": tiff(photometric="cielab"),
    "tiff signed": tiff(lambda image: image.astype(np.int16), photometric="rgb"),
    "tiff 12 bits": tiff(
        lambda image: grey(image).astype(np.uint16) * 16,
        grey3,
        photometric="minisblack",
        extratags=[(281, "H", 1, 4080, True)],
    ),
    "tiff palette": palette,
    "turned": turned,
    "transparent": transparent,
    "pages": pages,
    "pyramid": pyramid,
}


def number(kind):
    return lambda image, rng: (image.astype(kind), image)


ARRAYS = {
    "array": number("uint8"),
    "array of 16 bits": lambda image, rng: (wide(image), image),
    "array of numbers to 255": number("float32"),
    "array of whole numbers": number("int64"),
    "array to 1": lambda image, rng: (image / 255, image),
    "array half": lambda image, rng: ((image / 255).astype(np.float16), image),
    "array turned": lambda image, rng: (image.transpose(2, 0, 1), image),
    "array of objects": number(object),
    "array complex": number(complex),
    "array of text": number(str),
    "array of bits": lambda image, rng: (image > 128, (image > 128) * 255),
    "array NaN": lambda image, rng: (np.where(image > 200, np.nan, image / 255), image),
    "array infinite": lambda image, rng: (np.where(image > 200, np.inf, image / 255), image),
    "array negative": lambda image, rng: (image / 255 - 0.5, image),
    "array masked": lambda image, rng: (np.ma.masked_array(image, image > 200), image),
    "array of 12 bits": lambda image, rng: (image.astype(np.uint16) * 16, image),
    "array grey": lambda image, rng: (grey(image), grey3(image)),
    "array of two channels": lambda image, rng: (image[..., :2], image),
    "array of five channels": lambda image, rng: (np.concatenate([image, image[..., :2]], axis=2), image),
    "array empty": lambda image, rng: (image[:0], image),
    "array of four axes": lambda image, rng: (image[None], image),
    "list": lambda image, rng: (image.tolist(), image),
    "no image": lambda image, rng: (None, image),
    "numbers": lambda image, rng: (3, image),
}


def cut(content, rng):
    return content[: rng.integers(0, max(1, len(content) - 12))]


def zeroed(content, rng):
    start = int(rng.integers(0, len(content) - 64))
    return content[:start] + bytes(64) + content[start + 64 :]


DAMAGE = {
    "cut": cut,
    "zeroed": zeroed,
    "empty": lambda content, rng: b"",
    "text": lambda content, rng: b"no image at all",
    "noise": lambda content, rng: rng.bytes(len(content)),
}
# Their checksums tell damage.
CHECKED = {"png": saved(".png"), "tiff deflate": FILES["tiff deflate"]}
OPTIONS = {
    "scale": [0, -1, np.nan, np.inf, "1", None, 1e-9, 1e9],
    "spot_diameter": [0, -1, np.nan, "x", 1e9, 1e-9],
    "patch_size": [0, -1.0, np.nan, np.inf, "x", None, 1e6, 1e-6],
    "n_pixels": [0, -1, 1.5, "x", True, 10**7],
    "batch_size": [0, -3, 1.5, "x", np.nan],
    "unit": ["pixel", None, 3, "um"],
    "key_added": ["", "a/b", 3, None, "spatial"],
    "image_key": ["none", 3],
    "library_key": ["none", 3, []],
    "spatial_key": ["none", 3, None],
    "microns_per_pixel": [0, -1, "x", np.nan],
    "standardize": ["x", None],
    "device": ["gpux", 99],
}
POSITIONS = {
    "beside the image": lambda positions, rng: positions + 1e4,
    "position NaN": lambda positions, rng: np.where(np.arange(N_SPOTS)[:, None] == 3, np.nan, positions),
    "position infinite": lambda positions, rng: np.where(np.arange(N_SPOTS)[:, None] == 3, np.inf, positions),
    "positions of text": lambda positions, rng: positions.astype(str),
    "one coordinate": lambda positions, rng: positions[:, :1],
    "negative positions": lambda positions, rng: -positions,
    "masked positions": lambda positions, rng: np.ma.masked_array(positions, positions > 90),
}


def prepare(folder):
    pass


def draw(rng, folder):
    image = colours(rng)
    positions = np.stack([rng.uniform(SPOT, WIDTH - SPOT, N_SPOTS), rng.uniform(SPOT, HEIGHT - SPOT, N_SPOTS)], axis=1)
    what = rng.choice(["file", "array", "damage", "option", "position"], p=[0.35, 0.25, 0.2, 0.1, 0.1])
    options, given, shown, kinds = {}, image, image, [str(what)]
    if what == "file":
        name = str(rng.choice(list(FILES)))
        given, shown = FILES[name](folder / "a", image, rng)
        kinds = [name]
    elif what == "array":
        name = str(rng.choice(list(ARRAYS)))
        given, shown = ARRAYS[name](image, rng)
        kinds = [name]
    elif what == "damage":
        name, damage = str(rng.choice(list(CHECKED))), str(rng.choice(list(DAMAGE)))
        given, shown = CHECKED[name](folder / "a", image, rng)
        given.write_bytes(DAMAGE[damage](given.read_bytes(), rng))
        kinds = [f"{name} {damage}"]
    elif what == "option":
        name = str(rng.choice(list(OPTIONS)))
        options = {name: OPTIONS[name][rng.integers(len(OPTIONS[name]))]}
        kinds = [f"{name}={options[name]!r}"]
    else:
        kinds = [str(rng.choice(list(POSITIONS)))]
        positions = POSITIONS[kinds[0]](positions, rng)
    before = given.read_bytes() if what in ("file", "damage") else None

    def use():
        try:
            found = embedded(given, positions, **options)
        finally:
            if before is not None and given.read_bytes() != before:
                raise Harmful("the image file changed")
        if found is None or not np.isfinite(found).all():
            raise Silent("embeddings that are not finite")
        if what in ("file", "array", "damage"):
            expected = embedded(shown, positions)
            if np.abs(found - expected).max() > 0.03:
                raise Misread(f"the pixels differ by {np.abs(found - expected).max():.2f}")
        elif what == "position":
            raise Misread("positions that cannot be")

    return kinds, use
