"""Patches of an image in which the colour tells the place."""

import numpy as np
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt

from lgdist_scvi import pl


@pytest.fixture
def adata():
    y, x = np.mgrid[:100, :200] / 200
    places = np.column_stack([np.linspace(20, 180, 12), np.linspace(10, 90, 12)])
    adata = AnnData(obsm={"spatial": 2 * places})
    factors = {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 16.0}
    adata.uns["spatial"] = {"a": {"images": {"hires": np.stack([x, y, 0 * x], axis=2)}, "scalefactors": factors}}
    adata.obs_names = [f"s{i}" for i in range(12)]
    return adata


def test_patches_of_named_spots(adata):
    axes = pl.image_patches(adata, ["s7", "s2"], n_pixels=8)
    assert [ax.get_title() for ax in axes] == ["s7", "s2"]
    for ax, row in zip(axes, (7, 2), strict=True):
        (image,), (circle,) = ax.images, ax.patches
        middle = image.get_array()[3:5, 3:5].mean(axis=(0, 1))
        np.testing.assert_allclose(middle[:2] * 200, adata.obsm["spatial"][row] / 2, atol=1)
        assert circle.radius == 4 and image.get_extent() == [0, 32, 32, 0]


def test_some_spots_at_random(adata):
    axes = pl.image_patches(adata, 10, patch_size=2)
    assert len(axes) == 10 and len({ax.get_title() for ax in axes}) == 10
    again = pl.image_patches(adata, 10, patch_size=2)
    assert [ax.get_title() for ax in again] == [ax.get_title() for ax in axes]
    assert len(pl.image_patches(adata, 500)) == 12


def test_axes_of_the_user(adata):
    _, given = plt.subplots(1, 2)
    axes = pl.image_patches(adata, ["s0", "s1"], axes=given)
    assert list(axes) == list(given)
    with pytest.raises(ValueError, match="2 axes.*3 panels"):
        pl.image_patches(adata, 3, axes=given)


def test_bad_spots(adata):
    with pytest.raises(KeyError, match="1 spots.*s99"):
        pl.image_patches(adata, ["s1", "s99"])
    with pytest.raises(ValueError, match="no spot"):
        pl.image_patches(adata, [])


def test_the_figure_is_saved(adata, saves):
    saves(pl.image_patches, adata, 2)
