"""Image embeddings lie where the spots lie, whatever the image and its scale, and bad input is refused."""

import builtins
import sys
from types import SimpleNamespace

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import (
    Affine,
    Identity,
    Scale,
    Sequence,
    Translation,
    get_transformation,
    set_transformation,
)
from torch import nn

from lgdist_scvi.data import _slides
from lgdist_scvi.pp import StainDescriptor, image_embeddings

# Full-resolution pixels.
WIDTH, HEIGHT, DIAMETER = 1000, 600, 40


def position_image(width, height, blue=0.5):
    """Red is x / width, green is y / height."""
    image = np.full((height, width, 3), blue, dtype=np.float32)
    image[..., 0] = (np.arange(width) + 0.5) / width
    image[..., 1] = (np.arange(height)[:, None] + 0.5) / height
    return image


def noise_image(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mean_colour(patches):
    return patches.mean(dim=(2, 3))


def centre_colour(patches):
    n = patches.shape[-1]
    return patches[..., (n - 1) // 2 : n // 2 + 1, (n - 1) // 2 : n // 2 + 1].mean(dim=(2, 3))


def flat(patches):
    return patches.flatten(1)


def spots(n=50, width=WIDTH, height=HEIGHT, margin=60, seed=0):
    positions = np.random.default_rng(seed).uniform(margin, [width - margin, height - margin], (n, 2))
    return ad.AnnData(np.ones((n, 1), np.float32), pd.DataFrame(index=[f"spot_{i}" for i in range(n)])), positions


def tissue(image=None, scale=1.0, positions=None, **factors):
    """Spots in a section whose image is `scale` times the full resolution."""
    adata, drawn = spots(50 if positions is None else len(positions))
    adata.obsm["spatial"] = drawn if positions is None else np.asarray(positions, dtype=float)
    if image is None:
        image = position_image(round(WIDTH * scale), round(HEIGHT * scale))
    factors = {"tissue_hires_scalef": scale, "spot_diameter_fullres": DIAMETER} | factors
    adata.uns["spatial"] = {"section": {"images": {"hires": image}, "scalefactors": factors}}
    return adata


def embed(adata, model=mean_colour, **kwargs):
    image_embeddings(adata, model, **({"patch_size": 1, "n_pixels": 16, "standardize": False, "silent": True} | kwargs))
    return adata.obsm["X_image"]


def assert_at(found, positions, pixel=1.0, quantised=0.0):
    """Positions read from colours are those of the spots, to the pixel and without a bias."""
    error = found - positions
    assert np.abs(error).max() <= 0.51 * pixel + quantised
    assert np.abs(error.mean(axis=0)).max() <= 0.2 * pixel + quantised


def at_spots(adata, pixel=1.0, quantised=0.0):
    assert_at(adata.obsm["X_image"][:, :2] * [WIDTH, HEIGHT], adata.obsm["spatial"], pixel, quantised)


@pytest.mark.parametrize("scale", [1, 0.5, 0.13])
@pytest.mark.parametrize("size", [{"patch_size": 1}, {"patch_size": 2.6}, {"patch_size": 30, "unit": "um"}])
@pytest.mark.parametrize("model", [mean_colour, centre_colour])
def test_embedding_is_of_where_the_spot_is(scale, size, model):
    adata = tissue(scale=scale, microns_per_pixel=0.5)
    embed(adata, model, **size)
    at_spots(adata, 1 / scale)
    assert adata.obsm["X_image"].dtype == np.float32


@pytest.mark.parametrize("n_pixels", [8, 41, 100])
@pytest.mark.parametrize(
    ("size", "expected"), [({"patch_size": 2}, 40), ({"patch_size": 31, "unit": "um"}, 31), ({"patch_size": 4}, 80)]
)
def test_patch_is_as_wide_as_asked(n_pixels, size, expected):
    adata = tissue(scale=0.5, microns_per_pixel=0.5, positions=[[300, 300], [700, 200]])
    embed(adata, lambda patches: patches.amax((2, 3)) - patches.amin((2, 3)), n_pixels=n_pixels, **size)
    assert adata.uns["X_image"]["patch_pixels"] == [expected]
    pixels = adata.obsm["X_image"][:, :2] * [WIDTH / 2, HEIGHT / 2]
    between = expected - max(1, expected / n_pixels)  # from the first pixel to the last
    np.testing.assert_allclose(pixels, between, atol=1)


def test_rows_and_columns_of_a_patch_are_those_of_the_image():
    image = noise_image(60, 40)
    adata = tissue(image, positions=[[20, 15], [45, 22]], spot_diameter_fullres=8)
    patches = embed(adata, flat, patch_size=1, n_pixels=8).reshape(-1, 3, 8, 8) * 255
    for (x, y), patch in zip([(20, 15), (45, 22)], patches, strict=True):
        np.testing.assert_allclose(patch.transpose(1, 2, 0), image[y - 4 : y + 4, x - 4 : x + 4], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_positions_may_be_of_any_type_or_a_table_or_have_a_third_dimension(dtype):
    adata = tissue()
    expected = adata.obsm["spatial"]
    xyz = np.column_stack([expected, np.zeros(len(expected))]).astype(dtype)
    adata.obsm["spatial"] = pd.DataFrame(xyz, index=adata.obs_names, columns=["x", "y", "z"])
    embed(adata)
    assert_at(adata.obsm["X_image"][:, :2] * [WIDTH, HEIGHT], xyz[:, :2])


def two_sections():
    rng = np.random.default_rng(1)
    adata, _ = spots(60)
    adata.obs["library"] = pd.Categorical(np.where(rng.random(60) < 0.4, "b", "a"))
    sizes, scales = {"a": (1000, 600), "b": (400, 700)}, {"a": 0.2, "b": 0.5}
    extent = np.array([sizes[name] for name in adata.obs["library"]])
    adata.obsm["spatial"] = rng.uniform(80, extent - 80)
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": position_image(int(width * scales[name]), int(height * scales[name]), blue)},
            "scalefactors": {"tissue_hires_scalef": scales[name], "spot_diameter_fullres": DIAMETER},
        }
        for (name, (width, height)), blue in zip(sizes.items(), (0.25, 0.75), strict=True)
    }
    return adata, extent


def check_two_sections(adata, extent):
    for name, blue, pixel in (("a", 0.25, 5), ("b", 0.75, 2)):
        rows = (adata.obs["library"] == name).to_numpy()
        found = adata.obsm["X_image"][rows]
        np.testing.assert_allclose(found[:, 2], blue, atol=1e-4)
        assert_at(found[:, :2] * extent[rows], adata.obsm["spatial"][rows], pixel)


def test_every_library_has_its_own_image_and_scale():
    adata, extent = two_sections()
    embed(adata, library_key="library")
    check_two_sections(adata, extent)
    assert sorted(adata.uns["X_image"]["libraries"]) == ["a", "b"]


def test_images_by_library_in_a_dictionary():
    adata, extent = two_sections()
    images = {name: entry["images"]["hires"] for name, entry in adata.uns["spatial"].items()}
    images["a"] = np.repeat(np.repeat(images["a"], 5, axis=0), 5, axis=1)[::2, ::2]
    del adata.uns["spatial"]
    embed(adata, library_key="library", image=images, scale=0.5, spot_diameter=DIAMETER)
    check_two_sections(adata, extent)


def test_image_with_the_highest_resolution_is_taken_unless_another_is_named():
    adata = tissue(scale=0.2, tissue_lowres_scalef=0.05)
    images = adata.uns["spatial"]["section"]["images"]
    images["lowres"] = position_image(50, 30, blue=0)
    embed(adata)
    np.testing.assert_allclose(adata.obsm["X_image"][:, 2], 0.5, atol=1e-4)
    at_spots(adata, 5)
    embed(adata, image_key="lowres", patch_size=2)
    np.testing.assert_allclose(adata.obsm["X_image"][:, 2], 0, atol=1e-4)
    at_spots(adata, 20)
    assert "lowres" in adata.uns["X_image"]["images"][0]


def png(path, image):
    Image.fromarray((image * 255).round().astype(np.uint8)).save(path)


def palette_png(path, image):
    Image.fromarray((image * 255).round().astype(np.uint8)).quantize(256).save(path)


def grey_png16(path, image):
    Image.fromarray((image[..., 0] * 65535).round().astype(np.uint16)).save(path)


def tiff(**kwargs):
    def write(path, image):
        image = (image * 65535).round().astype(np.uint16)
        tifffile.imwrite(path, image.transpose(2, 0, 1) if kwargs.get("planarconfig") else image, **kwargs)

    return write


FILES = {
    "png": ("a.png", png, 2.5),
    "jpeg": ("a.JPG", png, 6),
    "tiff": ("a.tif", tiff(photometric="rgb"), 0),
    "tiled": ("a.tiff", tiff(photometric="rgb", tile=(64, 64), compression="zlib"), 0),
    "planar": ("a.tif", tiff(photometric="rgb", planarconfig="separate"), 0),
}


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize(("name", "write", "quantised"), FILES.values(), ids=FILES)
def test_image_from_a_file(tmp_path, name, write, quantised, as_path):
    adata = tissue()
    del adata.uns["spatial"]
    write(tmp_path / name, position_image(WIDTH // 4, HEIGHT // 4))
    embed(adata, image=as_path(tmp_path / name), scale=0.25, spot_diameter=DIAMETER)
    at_spots(adata, 4, quantised)
    assert adata.uns["X_image"]["images"] == [name]


def test_colours_of_a_palette_are_looked_up(tmp_path):
    adata = tissue()
    palette_png(tmp_path / "a.png", position_image(WIDTH // 4, HEIGHT // 4))
    embed(adata, image=tmp_path / "a.png", scale=0.25, patch_size=3)
    at_spots(adata, 4, quantised=30)


def test_file_may_be_larger_than_what_pillow_takes_for_an_attack(tmp_path, monkeypatch):
    png(tmp_path / "a.png", position_image(WIDTH // 4, HEIGHT // 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    adata = tissue()
    embed(adata, image=tmp_path / "a.png", scale=0.25)
    at_spots(adata, 4, quantised=2.5)
    assert Image.MAX_IMAGE_PIXELS == 1000


def grey(image):
    return (image[..., 0] * 255).round().astype(np.uint8)


def rgb(image):
    return (image * 255).round().astype(np.uint8)


def palette_tiff(path, image):
    colours = np.random.default_rng(0).permutation(256)
    table = np.zeros((3, 256), np.uint16)
    table[0, colours] = np.arange(256) * 257
    tifffile.imwrite(path, colours[grey(image)].astype(np.uint8), photometric="palette", colormap=table)


def turned_jpeg(path, image):
    """As a camera that was turned stores it, with a note of how it is to be shown."""
    picture = Image.fromarray(np.rot90(rgb(image)))
    noted = picture.getexif()
    noted[274] = 6
    picture.save(path, exif=noted, quality=95)


def inverted16(path, image):
    tifffile.imwrite(path, 65535 - grey(image).astype(np.uint16) * 257, photometric="miniswhite")


SHOWN = {
    "palette": ("a.tif", palette_tiff),
    "white is zero": ("a.tif", lambda path, image: tifffile.imwrite(path, 255 - grey(image), photometric="miniswhite")),
    "white is zero, 16 bits": ("a.tif", inverted16),
    "cmyk tiff": ("a.tif", lambda path, image: Image.fromarray(rgb(image)).convert("CMYK").save(path)),
    "cmyk jpeg": ("a.jpg", lambda path, image: Image.fromarray(rgb(image)).convert("CMYK").save(path, quality=95)),
    "turned jpeg": ("a.jpg", turned_jpeg),
    "turned tiff": (
        "a.tif",
        lambda path, image: tifffile.imwrite(
            path, np.rot90(rgb(image)).copy(), photometric="rgb", extratags=[(274, "H", 1, 6, True)]
        ),
    ),
    "12 bits in 16": (
        "a.tif",
        lambda path, image: tifffile.imwrite(
            path, grey(image).astype(np.uint16) * 16, photometric="minisblack", extratags=[(281, "H", 1, 4080, True)]
        ),
    ),
}


@pytest.mark.parametrize(("name", "write"), SHOWN.values(), ids=SHOWN)
def test_pixels_are_those_that_the_file_shows(tmp_path, name, write):
    adata = tissue()
    write(tmp_path / name, position_image(WIDTH // 4, HEIGHT // 4, blue=0))
    embed(adata, image=tmp_path / name, scale=0.25, patch_size=2)
    np.testing.assert_allclose(adata.obsm["X_image"][:, 0] * WIDTH, adata.obsm["spatial"][:, 0], atol=12)


def pages(path, image):
    with tifffile.TiffWriter(path) as file:
        file.write(rgb(image)[:20, :20], photometric="rgb")
        file.write(rgb(image), photometric="rgb")


REFUSED = {
    "lab": (
        lambda path, image: tifffile.imwrite(path, rgb(image), photometric="cielab"),
        ["CIELAB", "not converted", "RGB"],
    ),
    "pages": (
        lambda path, image: tifffile.imwrite(path, np.stack([grey(image)] * 3), photometric="minisblack"),
        ["axes are QYX", "one page"],
    ),
    "small page first": (pages, ["2 pages", "not the largest"]),
}


@pytest.mark.parametrize(("write", "parts"), REFUSED.values(), ids=REFUSED)
def test_file_whose_pixels_are_not_known_is_refused(tmp_path, write, parts):
    adata = tissue()
    before = contents(adata)
    write(tmp_path / "a.tif", position_image(WIDTH // 4, HEIGHT // 4))
    with pytest.raises(ValueError, match=r"a\.tif could not be read as an image.*TIFF, PNG or JPEG") as caught:
        embed(adata, image=tmp_path / "a.tif", scale=0.25)
    assert all(part in str(caught.value) for part in parts) and contents(adata) == before


def test_png_with_a_wrong_checksum(tmp_path):
    """Which Pillow reads as noise."""
    path = tmp_path / "a.png"
    png(path, position_image(WIDTH // 4, HEIGHT // 4))
    content = bytearray(path.read_bytes())
    content[-40:-24] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png could not be read as an image"):
        embed(tissue(), image=path, scale=0.25)


def test_truncated_file(tmp_path):
    path = tmp_path / "a.tif"
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), compression="zlib")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=r"a\.tif.*(could not be read|cannot be read in rows .* damaged or truncated)"):
        embed(tissue(), image=path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite(value):
    image = position_image(WIDTH, HEIGHT)
    image[HEIGHT // 2 :] = value
    with pytest.raises(ValueError, match=r"NaN or infinite in rows .*value of the background"):
        embed(tissue(image))


@pytest.mark.parametrize("dtype", [object, np.complex64, "U3"])
def test_pixels_that_are_no_numbers(dtype):
    with pytest.raises(TypeError, match="pixels of the type .*convert them to numbers"):
        embed(tissue(position_image(WIDTH, HEIGHT).astype(dtype)))


def test_twelve_bits_in_an_array_raise_a_warning():
    with pytest.warns(UserWarning, match=r"12 bits.*multiply it by 16"):
        embed(tissue((position_image(WIDTH, HEIGHT) * 4095).astype(np.uint16)))


@pytest.mark.parametrize("part", ["obsm", "uns"])
def test_data_of_the_user_is_not_replaced(part):
    adata = tissue()
    getattr(adata, part)["X_pca"] = mine = np.ones((adata.n_obs, 3))
    with pytest.raises(ValueError, match=r"key_added='X_pca' would replace.*another key"):
        embed(adata, key_added="X_pca")
    assert getattr(adata, part)["X_pca"] is mine
    # What the function wrote itself it may replace.
    for patch_size in (1, 2):
        image_embeddings(adata, mean_colour, key_added="mine", patch_size=patch_size, n_pixels=16, silent=True)
    assert adata.uns["mine"]["patch_size"] == 2


def test_file_that_would_not_fit_in_memory(tmp_path, monkeypatch):
    png(tmp_path / "a.png", position_image(WIDTH // 4, HEIGHT // 4))
    monkeypatch.setattr("lgdist_scvi._memory.available_memory", lambda: 8000)
    with pytest.raises(MemoryError, match=r"a\.png would take .*smaller image"):
        embed(tissue(), image=tmp_path / "a.png", scale=0.25, batch_size=1)


def test_grey_file_of_16_bits(tmp_path):
    adata = tissue()
    grey_png16(tmp_path / "a.png", position_image(WIDTH // 4, HEIGHT // 4))
    embed(adata, image=tmp_path / "a.png", scale=0.25)
    np.testing.assert_allclose(adata.obsm["X_image"] * WIDTH, adata.obsm["spatial"][:, [0, 0, 0]], atol=2.1)


@pytest.mark.parametrize("chunks", [(100, 70, 3), (-1, -1, 1)])
def test_dask_array(chunks):
    adata, plain = tissue(), tissue()
    adata.uns["spatial"]["section"]["images"]["hires"] = da.from_array(position_image(WIDTH, HEIGHT), chunks=chunks)
    np.testing.assert_array_equal(embed(adata), embed(plain))


EDGES = [[0, 0], [59, 39], [0, 39], [59, 0], [30, 0], [0, 20], [59.9, 39.9], [29, 19], [3, 37]]


@pytest.mark.parametrize("side", [6, 20, 100])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_beyond_the_image_its_edge_is_repeated(side, batch_size):
    image = noise_image(60, 40)
    adata = tissue(image, positions=EDGES, spot_diameter_fullres=side)
    found = embed(adata, flat, patch_size=1, n_pixels=side, batch_size=batch_size).reshape(-1, 3, side, side)
    padded = np.pad(image, [(side, side), (side, side), (0, 0)], mode="edge")
    for (x, y), patch in zip(EDGES, found, strict=True):
        left, top = round(x) + side // 2, round(y) + side // 2
        expected = padded[top : top + side, left : left + side]
        np.testing.assert_allclose(patch.transpose(1, 2, 0) * 255, expected, atol=1e-3)


def test_features_are_standardised_within_libraries():
    """A slide with another stain has the same embedding."""
    adata = tissue()
    plain = embed(adata, mean_colour, standardize=False)
    features = embed(adata, mean_colour, standardize=True)
    varies = plain.std(axis=0) > 1e-6
    assert varies.any() and not varies.all()
    expected = (plain - plain.mean(axis=0))[:, varies] / plain.std(axis=0)[varies]
    np.testing.assert_allclose(features[:, varies], expected, atol=1e-4)
    np.testing.assert_allclose(features[:, ~varies], 0, atol=1e-4)
    assert adata.uns["X_image"]["standardize"] is True


@pytest.mark.parametrize("tile", [64, 2048])
def test_batches_do_not_matter_and_every_spot_is_embedded_once(monkeypatch, tile):
    monkeypatch.setattr(_slides, "_TILE", tile)
    expected = embed(tissue(), batch_size=1000)
    for batch_size in (1, 7, 50):
        seen = []

        def model(patches, seen=seen):
            seen.append(len(patches))
            return mean_colour(patches)

        np.testing.assert_allclose(embed(tissue(), model, batch_size=batch_size), expected, atol=1e-6)
        assert sum(seen) == 50
        assert max(seen) <= batch_size
    at_spots(tissue_with(expected))


def tissue_with(embeddings):
    adata = tissue()
    adata.obsm["X_image"] = embeddings
    return adata


class Virtual:
    """An image whose pixels are computed when they are sliced, too large to hold."""

    dtype = np.dtype(np.uint16)

    def __init__(self, width, height):
        self.shape = (height, width, 3)
        self.read = []

    def __getitem__(self, key):
        y, x = (np.arange(size)[part] for part, size in zip(key, self.shape, strict=False))
        self.read.append((len(y), len(x)))
        height, width, _ = self.shape
        values = np.empty((len(y), len(x), 3), np.uint16)
        values[..., 0] = (x + 0.5) / width * 65535
        values[..., 1] = (y[:, None] + 0.5) / height * 65535
        values[..., 2] = 0
        return values


def test_large_image_is_read_in_pieces():
    width, height = 60_000, 40_000
    positions = spots(40, width, height, margin=300, seed=3)[1]
    positions[20:] = positions[:20] + np.random.default_rng(0).uniform(-150, 150, (20, 2))  # some close together
    image = Virtual(width, height)
    adata = tissue(image, positions=positions)
    side = 5 * DIAMETER
    embed(adata, patch_size=5)
    found = adata.obsm["X_image"][:, :2] * [width, height]
    assert_at(found, positions, quantised=1)
    assert max(max(read) for read in image.read) <= _slides._TILE + side
    assert len(image.read) < 40


RGB = noise_image(200, 120, seed=2)


def transparent(image):
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    return np.concatenate([image, alpha], axis=2)


@pytest.mark.parametrize(
    "image",
    [
        transparent(RGB),
        RGB.astype(np.uint16) * 257,
        RGB / np.float32(255),
        RGB / 255.0,
        RGB.astype(np.float32),
        RGB.astype(np.float64),
        RGB.astype(np.int64),
        (RGB / 255.0).astype(np.float16),
        transparent(RGB) / 255.0,
    ],
    ids=["RGBA", "uint16", "float32", "float64", "float 255", "double 255", "int64", "float16", "float RGBA"],
)
def test_ways_to_store_an_image(image):
    kwargs = {"patch_size": 0.5, "n_pixels": 20}
    positions = spots(20, 200, 120, margin=0)[1]
    expected = embed(tissue(RGB, positions=positions), flat, **kwargs)
    found = embed(tissue(image, positions=positions), flat, **kwargs)
    np.testing.assert_allclose(found, expected, atol=1e-3 if image.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("shape", [(120, 200), (120, 200, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_grey_image_has_three_equal_channels(shape, dtype):
    grey = RGB[..., :1] if dtype is np.uint8 else RGB[..., :1] > 127
    colour = np.repeat(grey, 3, axis=2).astype(np.uint8) * (1 if dtype is np.uint8 else 255)
    positions = spots(20, 200, 120, margin=0)[1]
    expected = embed(tissue(colour, positions=positions), flat)
    np.testing.assert_allclose(embed(tissue(grey.reshape(shape), positions=positions), flat), expected, atol=1e-6)


def test_transparent_is_white():
    image = transparent(RGB)
    image[:, :100, 3] = 0
    image[:, 100:, 3] = 51
    adata = tissue(image, positions=[[50, 60], [150, 60]], spot_diameter_fullres=20)
    clear, faint = embed(adata, patch_size=1)
    np.testing.assert_allclose(clear, 1, atol=1e-6)
    opaque = embed(tissue(RGB, positions=[[150, 60]], spot_diameter_fullres=20), patch_size=1)[0]
    np.testing.assert_allclose(faint, 0.2 * opaque + 0.8, atol=1e-5)


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (">u2", 65535)])
def test_dark_image_is_as_dark_as_its_type_says(dtype, full):
    adata = tissue(np.full((HEIGHT, WIDTH), 100, dtype))
    np.testing.assert_allclose(embed(adata), 100 / full, rtol=1e-5)


def test_float_image_that_exceeds_one_by_interpolation_is_not_black():
    image = position_image(WIDTH, HEIGHT)
    image[300, 500] = 1.02
    adata = tissue(image)
    embed(adata)
    at_spots(adata, quantised=1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(3)
        self.grads = []

    def forward(self, patches):
        self.grads.append(torch.is_grad_enabled() or self.training)
        return self.dropout(self.norm(patches)).mean(dim=(2, 3)) * self.weight


def test_module_runs_in_eval_mode_without_gradient():
    net = Net()
    adata = tissue()
    embed(adata, net, device="cpu")
    assert net.grads == [False]
    at_spots(adata, quantised=0.01)
    assert adata.uns["X_image"]["model"] == "Net"
    assert net.weight.grad is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda patches: patches.mean(dim=(2, 3)).numpy().astype(np.float64), "<lambda>"),
        (lambda patches: patches.mean(dim=(2, 3)).tolist(), "<lambda>"),
        (lambda patches: patches.mean(dim=(2, 3)) * nn.Parameter(torch.ones(3)), "<lambda>"),
        (mean_colour, "mean_colour"),
    ],
    ids=["double", "list", "gradient", "tensor"],
)
def test_callable_may_return_any_array(model, name):
    adata = tissue()
    np.testing.assert_allclose(embed(adata, model), embed(tissue(), mean_colour), atol=1e-6)
    assert adata.uns["X_image"]["model"] == name


def test_callable_sees_patches_of_the_size_asked_for():
    seen = []

    def model(patches):
        seen.append(patches)
        return mean_colour(patches)

    embed(tissue(), model, n_pixels=24)
    embed(tissue(), model, n_pixels=None)
    assert [patches.shape for patches in seen] == [(50, 3, 24, 24), (50, 3, 224, 224)]
    assert all(patches.dtype == torch.float32 and 0 <= patches.min() <= patches.max() <= 1 for patches in seen)


def test_default_needs_no_model_and_repeats_itself():
    adata = tissue(scale=0.5)
    image_embeddings(adata, patch_size=1, standardize=False, silent=True)
    first = adata.obsm["X_image"]
    assert first.shape == (50, 120)
    assert np.isfinite(first).all()
    assert adata.uns["X_image"]["model"] == "StainDescriptor"
    assert adata.uns["X_image"]["n_pixels"] == 128
    np.testing.assert_array_equal(embed(tissue(scale=0.5), StainDescriptor(), n_pixels=None), first)


def test_default_works_on_a_simulated_tissue():
    from lgdist_scvi.datasets import simulated_tissue

    adata = simulated_tissue(120, 30)
    image_embeddings(adata, silent=True, key_added="mine")
    assert np.isfinite(adata.obsm["mine"]).all()
    # Colours tell the domains apart, so the descriptor does too.
    domain = adata.obs["domain"].to_numpy()
    values = (adata.obsm["mine"] - adata.obsm["mine"].mean(0)) / (adata.obsm["mine"].std(0) + 1e-6)
    distance = np.linalg.norm(values[:, None] - values, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (domain[distance.argmin(axis=1)] == domain).mean() > 0.7


def test_timm_model_is_given_standardised_patches(monkeypatch):
    made = {}

    def create_model(name, **kwargs):
        made.update(kwargs, name=name)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    config = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1.0)}
    data = SimpleNamespace(resolve_model_data_config=lambda model: config)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, data=data, __version__="1.0"))
    adata = tissue()
    found = embed(adata, "resnet", n_pixels=None)
    expected = (embed(tissue()) - config["mean"]) / config["std"]
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert made == {"name": "resnet", "pretrained": True, "num_classes": 0}
    assert not {"pooling", "timm_kwargs"} & set(adata.uns["X_image"])
    embed(adata, "resnet", n_pixels=None, timm_kwargs={"init_values": 1e-5, "act_layer": nn.SiLU})
    assert made == {"name": "resnet", "pretrained": True, "num_classes": 0, "init_values": 1e-5, "act_layer": nn.SiLU}
    assert (adata.uns["X_image"]["timm_init_values"], adata.uns["X_image"]["timm_act_layer"]) == ("1e-05", "SiLU")
    assert adata.uns["X_image"]["n_pixels"] == 48
    assert adata.uns["X_image"]["model"] == "resnet"


def test_weights_that_timm_loads(tmp_path):
    """The library itself, with weights of its own making, as from its cache."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False).eval()
    timm.models.save_for_hf(network, tmp_path / "model", safe_serialization=True)
    adata = tissue()
    found = embed(adata, f"local-dir:{tmp_path / 'model'}", n_pixels=64)
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    patches = embed(tissue(), lambda patches: patches.flatten(1), n_pixels=64).reshape(-1, 3, 64, 64)
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network((torch.from_numpy(patches) - mean) / std)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """A class token, two registers and two tokens of patches, one feature each."""

    num_prefix_tokens = 3

    def forward(self, patches):
        red = patches[:, 0].mean(dim=(1, 2))
        return torch.stack([red, 7 * red, 9 * red, 2 * red, 4 * red], dim=1)[..., None]


def test_tokens_are_pooled():
    red = embed(tissue(), lambda patches: patches[:, :1].mean(dim=(2, 3)))
    adata = tissue()
    np.testing.assert_allclose(embed(adata, Tokens(), pooling="class"), red, rtol=1e-5)
    assert adata.uns["X_image"]["pooling"] == "class"
    np.testing.assert_allclose(embed(tissue(), Tokens(), pooling="class_mean"), red * [1, 3], rtol=1e-5)
    with pytest.raises(ValueError, match=r"array of shape \(.*tokens to take with pooling='class'"):
        embed(tissue(), Tokens())
    with pytest.raises(ValueError, match="pooling='class' needs tokens, but the model 'mean_colour'"):
        embed(tissue(), pooling="class")
    with pytest.raises(ValueError, match="pooling='mean' must be"):
        embed(tissue(), Tokens(), pooling="mean")
    with pytest.raises(ValueError, match="timm_kwargs=... are for a timm model by name"):
        embed(tissue(), Tokens(), timm_kwargs={"depth": 1})


# Small networks of the architectures that docs/encoders.md names: base, sizes, what its page says, tokens, pooling.
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 28}
GLU = {"mlp_ratio": 2.66667 * 2, "no_embed_class": True, "patch_size": 14}
COLOURS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
ENCODERS = {
    "UNI2-h": ("vit_huge_patch14_224", {**GLU, "reg_tokens": 8, "dynamic_img_size": True, "init_values": 1e-5}, None),
    "Virchow2": (
        "vit_huge_patch14_224",
        {**GLU, "reg_tokens": 4, "global_pool": "", "init_values": 1e-5},
        "class_mean",
    ),
    "H-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"init_values": 1e-5, "dynamic_img_size": False}, None),
    "H0-mini": ("vit_base_patch14_reg4_dinov2", {**GLU, "global_pool": "", "init_values": 1e-5}, "class"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_architectures_of_pathology(name):
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    base, arguments, pooling = ENCODERS[name]
    arguments = {**SMALL, **arguments, "pretrained": False}
    if name == "H-optimus-0":
        arguments["pretrained_cfg_overlay"] = COLOURS
    else:
        arguments |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    adata = tissue()
    torch.manual_seed(0)
    found = embed(adata, base, n_pixels=28, timm_kwargs=arguments, pooling=pooling)
    torch.manual_seed(0)
    network = timm.create_model(base, num_classes=0, **arguments).eval()
    patches = embed(tissue(), lambda patches: patches.flatten(1), n_pixels=28).reshape(-1, 3, 28, 28)
    colours = COLOURS if name == "H-optimus-0" else network.pretrained_cfg
    mean, std = (torch.tensor(colours[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        tokens = network((torch.from_numpy(patches) - mean) / std)
    if pooling is not None:
        assert tokens.shape[1:] == (1 + 4 + 4, 48)
        tokens = tokens[:, 0] if pooling == "class" else torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
    np.testing.assert_allclose(found, tokens, rtol=1e-3, atol=1e-4)
    assert found.shape[1] == (96 if pooling == "class_mean" else 48) and found.std(axis=0).min() > 0
    assert adata.uns["X_image"]["timm_embed_dim"] == "48" and adata.uns["X_image"]["timm"] == timm.__version__


def test_torchvision_that_does_not_fit(monkeypatch):
    real = builtins.__import__

    def broken(name, *arguments, **options):
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match=r"torchvision::nms .*same index"):
        image_embeddings(tissue(), "resnet50", silent=True)


def contents(adata):
    return {attribute: sorted(map(str, getattr(adata, attribute))) for attribute in ("obs", "uns", "obsm", "layers")}


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    adata = tissue()
    before = contents(adata)
    with pytest.raises(ImportError, match=r"'resnet50'.*pip install 'lgdist-scvi\[image\]'"):
        image_embeddings(adata, "resnet50", silent=True)
    assert contents(adata) == before


def test_library_without_image_has_nan_and_a_warning():
    adata, extent = two_sections()
    whole = embed(adata, library_key="library").copy()
    adata, _ = two_sections()
    del adata.uns["spatial"]["b"]
    with pytest.warns(UserWarning, match=r"no image for \['b'\]") as caught:
        embed(adata, library_key="library")
    assert caught[0].filename == __file__
    without = (adata.obs["library"] == "b").to_numpy()
    assert np.isnan(adata.obsm["X_image"][without]).all()
    np.testing.assert_array_equal(adata.obsm["X_image"][~without], whole[~without])
    assert adata.uns["X_image"]["libraries"] == ["a"]


def test_what_is_known_of_the_image_survives_a_file(tmp_path):
    adata = tissue(scale=0.5)
    image_embeddings(adata, mean_colour, patch_size=3, n_pixels=20, key_added="X_mine", silent=True)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    made = read.uns["X_mine"]
    assert made["package"] == "lgdist-scvi"
    assert made["model"] == "mean_colour"
    assert (made["patch_size"], made["unit"], made["n_pixels"]) == (3.0, "spot", 20)
    assert list(made["libraries"]) == ["section"]
    assert list(made["images"]) == ["uns['spatial'] hires"]
    assert list(made["patch_pixels"]) == [3 * DIAMETER / 2]
    np.testing.assert_array_equal(read.obsm["X_mine"], adata.obsm["X_mine"])
    assert "X_image" not in read.obsm


def entry(adata):
    return adata.uns["spatial"]["section"]


def without_factor(name):
    def change(adata):
        del entry(adata)["scalefactors"][name]

    return change


def factor(value):
    def change(adata):
        entry(adata)["scalefactors"]["tissue_hires_scalef"] = value

    return change


def picture(image):
    def change(adata):
        entry(adata)["images"]["hires"] = image

    return change


def position(value, row=4):
    def change(adata):
        adata.obsm["spatial"][row] = value

    return change


def no_positions(adata):
    del adata.obsm["spatial"]


def no_image(adata):
    del adata.uns["spatial"]


def no_images(adata):
    entry(adata)["images"] = {}


def one_column(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]


def another_library(adata):
    adata.uns["spatial"]["other"] = entry(adata)


def libraries(values):
    def change(adata):
        adata.obs["library"] = np.resize(np.array(values, dtype=object), adata.n_obs)

    return change


def same(adata):
    pass


def nan_model(patches):
    return np.full((len(patches), 3), np.nan)


BLANK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
CASES = {
    "image_key": (same, {"image_key": "midres"}, KeyError, ["'section'", "'midres'", "['hires']", "image_key="]),
    "no scale factor": (
        without_factor("tissue_hires_scalef"),
        {},
        KeyError,
        ["tissue_hires_scalef", "'section'", "scale="],
    ),
    "scale factor zero": (factor(0), {}, ValueError, ["scale factor", "'section'", "positive"]),
    "scale factor NaN": (factor(np.nan), {}, ValueError, ["scale factor", "'section'", "nan"]),
    "scale factor too large": (
        factor(1.5),
        {},
        ValueError,
        ["of the 50 spots", "outside", "'spot_", "1000 x 600", "scale"],
    ),
    "scale factor too small": (factor(0.02), {}, ValueError, ["All spots", "lie within", "1000 x 600", "scale factor"]),
    "beyond the right": (position([1000, 300]), {}, ValueError, ["1 of the 50 spots", "'spot_4'", "drop"]),
    "beyond the bottom": (position([700, 600]), {}, ValueError, ["1 of the 50 spots", "'spot_4'"]),
    "beyond the left": (position([-1, 300]), {}, ValueError, ["1 of the 50 spots", "'spot_4'"]),
    "positions NaN": (
        position([np.nan, 3]),
        {},
        ValueError,
        ["obsm['spatial']", "NaN or infinite", "1 spot", "'spot_4'"],
    ),
    "no positions": (no_positions, {}, KeyError, ["obsm['spatial']", "spatial_key="]),
    "one column": (one_column, {}, ValueError, ["obsm['spatial']", "(50, 1)", "x and y"]),
    "2 channels": (picture(BLANK[..., :2]), {}, ValueError, ["(600, 1000, 2)", "channels"]),
    "5 channels": (picture(np.zeros((600, 1000, 5))), {}, ValueError, ["(600, 1000, 5)", "channels"]),
    "channels first": (picture(BLANK.transpose(2, 0, 1)), {}, ValueError, ["(3, 600, 1000)", "(height, width"]),
    "not an image": (same, {"image": [[1, 2], [3, 4]]}, ValueError, ["array", "height"]),
    "no file": (same, {"image": "none/such.tif"}, FileNotFoundError, ["such.tif", "image="]),
    "no images": (no_images, {}, KeyError, ["no image", "section", "image="]),
    "no image": (no_image, {"spot_diameter": 9}, KeyError, ["no image", "uns['spatial']", "image="]),
    "spot diameter": (
        without_factor("spot_diameter_fullres"),
        {},
        ValueError,
        ["spot diameter of 'section'", "spot_diameter=", "spot_diameter_fullres"],
    ),
    "pixel size": (same, {"unit": "um"}, ValueError, ["'section'", "microns_per_pixel="]),
    "unit": (same, {"unit": "mm"}, ValueError, ["'mm'", "'spot'", "'um'"]),
    "patch size zero": (same, {"patch_size": 0}, ValueError, ["patch_size=0", "number above 0"]),
    "patch size negative": (same, {"patch_size": -2}, ValueError, ["patch_size=-2", "number above 0"]),
    "patch size NaN": (same, {"patch_size": np.nan}, ValueError, ["patch_size=nan"]),
    "scale negative": (same, {"image": BLANK, "scale": -1}, ValueError, ["scale=-1", "number above 0"]),
    "batch size": (same, {"batch_size": 0}, ValueError, ["batch_size=0", "at least 1"]),
    "pixels": (same, {"n_pixels": -3}, ValueError, ["n_pixels=-3", "at least 1"]),
    "no pixels": (same, {"n_pixels": 0}, ValueError, ["n_pixels=0", "at least 1"]),
    "more pixels than fit": (same, {"n_pixels": 10**7}, MemoryError, ["n_pixels=10000000", "smaller batch_size"]),
    "libraries by a list": (same, {"library_key": []}, TypeError, ["library_key=[] must be one name"]),
    "patch larger than the image": (same, {"patch_size": 1e6}, ValueError, ["pixels wide", "correct patch_size"]),
    "spot diameter zero": (same, {"spot_diameter": 0}, ValueError, ["spot_diameter=0", "number above 0"]),
    "micrometres of text": (same, {"microns_per_pixel": "x"}, ValueError, ["microns_per_pixel='x'"]),
    "no name": (same, {"key_added": None}, ValueError, ["key_added=None must be a name"]),
    "negative pixels": (same, {"image": BLANK / 255 - 0.5, "scale": 1.0}, ValueError, ["negative pixels", "from 0"]),
    "masked pixels": (same, {"image": np.ma.masked_array(BLANK, BLANK > 3)}, TypeError, ["masked array", ".filled("]),
    "small patches": (same, {"patch_size": 0.02}, ValueError, ["0.8 pixels", "'section'", "larger patches"]),
    "several libraries": (another_library, {}, ValueError, ["['section', 'other']", "library_key="]),
    "no such column": (same, {"library_key": "slide"}, KeyError, ["obs['slide']", "library_key="]),
    "library NaN": (
        libraries(["section", np.nan]),
        {"library_key": "library"},
        ValueError,
        ["obs['library']", "25 spots", "'spot_1'"],
    ),
    "one image for two": (
        libraries(["section", "other"]),
        {"library_key": "library", "image": BLANK},
        ValueError,
        ["one image", "'other'", "dictionary"],
    ),
    "image of no library": (same, {"image": {"sektion": BLANK}}, KeyError, ["'sektion'", "'section'"]),
    "one-dimensional": (
        same,
        {"model": lambda patches: np.ones(len(patches))},
        ValueError,
        ["'<lambda>'", "(50,)", "(50, n_features)"],
    ),
    "too few rows": (same, {"model": lambda patches: np.ones((3, 2))}, ValueError, ["(3, 2)", "50 patches"]),
    "feature map": (same, {"model": lambda patches: patches}, ValueError, ["(50, 3, 16, 16)", "n_features"]),
    "model NaN": (same, {"model": nan_model}, ValueError, ["'nan_model'", "not finite"]),
    "small for the default": (same, {"model": None, "n_pixels": 8}, ValueError, ["(8, 8)", "n_pixels", "16"]),
    "key of positions": (same, {"key_added": "spatial"}, ValueError, ["key_added='spatial'"]),
}


@pytest.mark.parametrize(("change", "kwargs", "error", "parts"), CASES.values(), ids=CASES)
def test_bad_input(change, kwargs, error, parts):
    adata = tissue()
    change(adata)
    before, positions = contents(adata), adata.obsm.get("spatial")
    with pytest.raises(error) as caught:
        image_embeddings(adata, **({"model": mean_colour, "n_pixels": 16, "silent": True} | kwargs))
    assert all(part in str(caught.value.args[0]) for part in parts), caught.value
    assert contents(adata) == before
    assert adata.obsm.get("spatial") is positions


def test_spots_that_fill_little_of_the_image_raise_a_warning():
    """As when the factor of the hires image is used for the full-resolution one."""
    adata = tissue()
    factor(0.15)(adata)
    entry(adata)["scalefactors"]["spot_diameter_fullres"] = 200
    with pytest.warns(UserWarning, match=r"within 1\d\.\d% of the width.*check that.*scale factor"):
        image_embeddings(adata, mean_colour, n_pixels=16, silent=True)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_file_that_is_no_image(tmp_path, name):
    (tmp_path / name).write_text("no image")
    adata = tissue()
    before = contents(adata)
    with pytest.raises(ValueError, match=rf"{name} could not be read as an image.*TIFF, PNG or JPEG"):
        embed(adata, image=tmp_path / name)
    assert contents(adata) == before


def test_failure_late_leaves_what_was_there():
    adata = tissue()
    first = embed(adata).copy()
    calls = iter([np.ones((10, 3)), np.ones((10, 3)), np.ones((10, 2))])
    with pytest.raises(ValueError):
        embed(adata, lambda patches: next(calls), batch_size=10)
    np.testing.assert_array_equal(adata.obsm["X_image"], first)
    assert adata.uns["X_image"]["model"] == "mean_colour"


AXES = {"axes": ("x", "y")}
# How the pixels of an image, and the coordinates of shapes, lie in the common coordinate system: by name, as what
# spatialdata takes and as a matrix.
PLACEMENTS = {
    "same": (lambda: Identity(), [[1, 0, 0], [0, 1, 0]]),
    "scaled": (lambda: Scale([2.5, 2.5], **AXES), [[2.5, 0, 0], [0, 2.5, 0]]),
    "moved": (
        lambda: Sequence([Scale([0.5, 0.5], **AXES), Translation([700, -30], **AXES)]),
        [[0.5, 0, 700], [0, 0.5, -30]],
    ),
    "moved first": (
        lambda: Sequence([Translation([40, 900], **AXES), Scale([3, 3], **AXES)]),
        [[3, 0, 120], [0, 3, 2700]],
    ),
    "turned": (
        lambda: Affine([[0, -2, 500], [2, 0, 20], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")),
        [[0, -2, 500], [2, 0, 20]],
    ),
    "mirrored": (
        lambda: Affine([[-1, 0, 90], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")),
        [[-1, 0, 90], [0, 1, 0]],
    ),
}


def magnification(name):
    return np.sqrt(abs(np.linalg.det(np.array(PLACEMENTS[name][1])[:, :2])))


def moved(positions, there, back):
    """Pixels of the image in coordinates of the shapes."""
    there, back = (np.vstack([PLACEMENTS[name][1], [0, 0, 1]]) for name in (there, back))
    return (np.column_stack([positions, np.ones(len(positions))]) @ (np.linalg.inv(back) @ there).T)[:, :2]


def regions(*placements, blues=(0.25, 0.75), systems=None, image_kwargs=None, seed=0):
    """One region with one image for each (place of the image, place of the shapes); the true pixels by row."""
    rng = np.random.default_rng(seed)
    images, shapes, obs, pixels = {}, {}, [], []
    for i, (of_image, of_shapes) in enumerate(placements):
        system = f"section_{i}" if systems is None else systems[i]
        width, height = 300 + 50 * i, 200
        image = position_image(width, height, blues[i])
        images[f"image_{i}"] = Image2DModel.parse(
            image.transpose(2, 0, 1),
            dims=("c", "y", "x"),
            transformations={system: PLACEMENTS[of_image][0]()},
            **(image_kwargs or {}),
        )
        true = rng.uniform(30, [width - 30, height - 30], (30, 2))
        radius = 8 * magnification(of_image) / magnification(of_shapes)
        shapes[f"region_{i}"] = ShapesModel.parse(
            moved(true, of_image, of_shapes),
            geometry=0,
            radius=radius,
            index=pd.Index(100 * i + rng.permutation(30)),
            transformations={system: PLACEMENTS[of_shapes][0]()},
        )
        obs.append(pd.DataFrame({"region": f"region_{i}", "instance": shapes[f"region_{i}"].index}))
        pixels.append(true)
    obs, pixels = pd.concat(obs), np.concatenate(pixels)
    order = rng.permutation(len(obs))
    obs = obs.iloc[order].set_axis([f"spot_{i}" for i in range(len(obs))])
    obs["region"] = obs["region"].astype("category")
    table = TableModel.parse(
        ad.AnnData(np.ones((len(obs), 1), np.float32), obs),
        region=list(shapes),
        region_key="region",
        instance_key="instance",
    )
    return SpatialData(images=images, shapes=shapes, tables={"table": table}), pixels[order]


def at_pixels(sdata, pixels, quantised=0.0):
    table = sdata.tables["table"]
    for i, region in enumerate(table.obs["region"].cat.categories):
        rows = (table.obs["region"] == region).to_numpy()
        found = table.obsm["X_image"][rows]
        np.testing.assert_allclose(found[:, 2], (0.25, 0.75)[i], atol=1e-4)
        assert_at(found[:, :2] * [300 + 50 * i, 200], pixels[rows], quantised=quantised)


def embed_regions(sdata, **kwargs):
    image_embeddings(
        sdata,
        **({"model": mean_colour, "patch_size": 1, "n_pixels": 16, "standardize": False, "silent": True} | kwargs),
    )
    return sdata.tables["table"].uns["X_image"]


@pytest.mark.parametrize(
    ("of_image", "of_shapes"),
    [
        ("same", "same"),
        ("scaled", "moved"),
        ("moved first", "scaled"),
        ("turned", "same"),
        ("turned", "moved"),
        ("same", "turned"),
        ("mirrored", "moved first"),
    ],
)
def test_transformations_of_a_spatialdata(of_image, of_shapes):
    sdata, pixels = regions((of_image, of_shapes))
    made = embed_regions(sdata)
    at_pixels(sdata, pixels)
    np.testing.assert_allclose(made["patch_pixels"], [16])
    assert (made["libraries"], made["images"]) == (["region_0"], ["image_0"])


def test_two_regions_with_two_images():
    sdata, pixels = regions(("turned", "scaled"), ("moved", "same"))
    made = embed_regions(sdata)
    at_pixels(sdata, pixels)
    assert made["images"] == ["image_0", "image_1"]


def test_images_of_regions_are_named_where_they_share_a_coordinate_system():
    sdata, pixels = regions(("turned", "scaled"), ("moved", "same"), systems=["global", "global"])
    with pytest.raises(ValueError, match=r"\['image_0', 'image_1'\].*image="):
        embed_regions(sdata)
    assert "X_image" not in sdata.tables["table"].obsm
    embed_regions(sdata, image={"region_0": "image_0", "region_1": "image_1"})
    at_pixels(sdata, pixels)


def test_several_coordinate_systems_may_be_shared():
    sdata, pixels = regions(("scaled", "moved"))
    for element in (sdata["image_0"], sdata["region_0"]):
        placed = get_transformation(element, "section_0")
        set_transformation(element, Sequence([placed, Scale([0.1, 0.1], **AXES)]), "downscaled")
    embed_regions(sdata)
    at_pixels(sdata, pixels)


def test_finest_level_of_a_multiscale_image_is_read():
    sdata, pixels = regions(("turned", "moved"), image_kwargs={"scale_factors": [2]})
    made = embed_regions(sdata)
    at_pixels(sdata, pixels)
    np.testing.assert_allclose(made["patch_pixels"], [16])


def test_micrometres_are_those_of_the_regions_own_coordinates():
    sdata, pixels = regions(("scaled", "moved"))
    # A unit of the shapes is a fifth of a pixel.
    made = embed_regions(sdata, unit="um", patch_size=20, microns_per_pixel=0.25)
    np.testing.assert_allclose(made["patch_pixels"], [20 / 0.25 / 5])
    at_pixels(sdata, pixels)


def test_polygons_are_as_wide_as_a_circle_of_their_area():
    sdata, pixels = regions(("scaled", "moved"))
    circles = sdata.shapes["region_0"]
    squares = circles.set_geometry(circles.geometry.buffer(circles["radius"].iloc[0], cap_style="square"))
    sdata.shapes["region_0"] = ShapesModel.parse(squares.drop(columns="radius"))
    made = embed_regions(sdata)
    np.testing.assert_allclose(made["patch_pixels"], [2 * np.sqrt(16**2 / np.pi)], rtol=1e-6)
    at_pixels(sdata, pixels)


def test_region_without_an_image_has_nan_and_a_warning():
    sdata, pixels = regions(("turned", "scaled"), ("moved", "same"))
    del sdata.images["image_1"]
    with pytest.warns(UserWarning, match=r"no image for \['region_1'\]") as caught:
        embed_regions(sdata)
    assert caught[0].filename == __file__
    table = sdata.tables["table"]
    without = (table.obs["region"] == "region_1").to_numpy()
    assert (np.isnan(table.obsm["X_image"]).all(axis=1) == without).all()


def test_embeddings_of_a_spatialdata_survive_a_file(tmp_path):
    sdata, pixels = regions(("turned", "moved"))
    embed_regions(sdata)
    sdata.write(tmp_path / "a.zarr")
    read = SpatialData.read(tmp_path / "a.zarr")
    at_pixels(read, pixels)
    del read.tables["table"].obsm["X_image"]
    made = embed_regions(read)
    at_pixels(read, pixels)
    assert list(made["images"]) == ["image_0"]


def remove_shape(sdata):
    sdata.shapes["region_0"] = sdata.shapes["region_0"].drop(index=3)


def move_image(sdata):
    set_transformation(sdata["image_0"], Translation([0, 500], **AXES), "section_0")


def other_system(sdata):
    set_transformation(sdata["image_0"], {"elsewhere": Identity()}, set_all=True)


SPATIALDATA_CASES = {
    "labels": (lambda sdata: sdata.shapes.pop("region_0"), {}, KeyError, ["'region_0'", "sdata.shapes"]),
    "table": (same, {"table_key": "tabel"}, KeyError, ["'tabel'", "['table']", "table_key="]),
    "image": (same, {"image": "he"}, KeyError, ["'he'", "['image_0']", "image="]),
    "image of a region": (same, {"image": {"region_0": "he"}}, KeyError, ["'he'", "['image_0']"]),
    "region": (same, {"image": {"regoin": "image_0"}}, KeyError, ["'regoin'", "['region_0']"]),
    "array": (same, {"image": BLANK}, TypeError, ["name", "['image_0']", "image="]),
    "no image": (lambda sdata: sdata.images.pop("image_0"), {}, KeyError, ["no image", "'region_0'"]),
    "elsewhere": (other_system, {}, KeyError, ["no image", "'region_0'", "coordinate system"]),
    "named elsewhere": (other_system, {"image": "image_0"}, ValueError, ["'image_0'", "'region_0'", "['elsewhere']"]),
    "spots missing": (remove_shape, {}, ValueError, ["'region_0'", "1 spot", "3"]),
    "outside": (move_image, {}, ValueError, ["outside", "'region_0'", "'spot_", "image_0", "transformations"]),
    "pixel size": (same, {"unit": "um"}, ValueError, ["'region_0'", "microns_per_pixel="]),
    "small patches": (same, {"patch_size": 0.1}, ValueError, ["1.6 pixels", "'region_0'", "image_0"]),
    "of an AnnData": (same, {"image_key": "hires", "scale": 0.5}, ValueError, ["image_key, scale", "SpatialData"]),
}


@pytest.mark.parametrize(("change", "kwargs", "error", "parts"), SPATIALDATA_CASES.values(), ids=SPATIALDATA_CASES)
def test_bad_spatialdata(change, kwargs, error, parts):
    sdata, _ = regions(("same", "same"))
    change(sdata)
    before = contents(sdata.tables["table"])
    with pytest.raises(error) as caught:
        embed_regions(sdata, **kwargs)
    assert all(part in str(caught.value.args[0]) for part in parts), caught.value
    assert contents(sdata.tables["table"]) == before
