"""Features of tiles reach the spots that lie in them, and what does not fit is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from formats import tiled_slide

from lgdist_scvi import pp


def spots(positions, **obs):
    names = [f"spot_{i}" for i in range(len(positions))]
    adata = ad.AnnData(np.ones((len(positions), 3), dtype=np.float32), obs=pd.DataFrame(obs, index=names))
    adata.obsm["spatial"] = np.array(positions, dtype=float)
    return adata


PLACES = [(5, 5), (25, 15), (55, 55), (12, 48)]
TILES = [0, 8, 35, 25]


def test_each_spot_takes_the_tile_that_it_lies_in():
    of_tiles, features = tiled_slide()
    adata = spots(PLACES)
    pp.tile_embeddings(adata, of_tiles, "uni2_tiles", standardize=False)
    np.testing.assert_array_equal(adata.obsm["X_image"], features[TILES])
    assert adata.obsm["X_image"].dtype == np.float32
    assert adata.uns["X_image"]["model"] == "uni2_tiles"


def test_positions_are_scaled_and_overlapping_tiles_averaged():
    of_tiles, features = tiled_slide(overlap=0.5)
    adata = spots([(0.6, 0.4), (1.2, 0.7)])
    pp.tile_embeddings(adata, of_tiles, "uni2_tiles", scale=10, standardize=False)
    np.testing.assert_array_equal(adata.obsm["X_image"][0], features[0])
    np.testing.assert_allclose(adata.obsm["X_image"][1], features[[0, 1]].mean(axis=0), rtol=1e-6)


def test_spots_beside_all_tiles_have_no_image():
    of_tiles, _ = tiled_slide()
    adata = spots([*PLACES, (500, 5)])
    with pytest.warns(UserWarning, match=r"No tile contains 1 spot \('spot_4'\)"):
        pp.tile_embeddings(adata, of_tiles, "uni2_tiles")
    assert np.isnan(adata.obsm["X_image"][4]).all()
    np.testing.assert_allclose(adata.obsm["X_image"][:4].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(adata.obsm["X_image"][:4].std(axis=0), 1, rtol=1e-5)


def test_slides_by_library():
    one, of_one = tiled_slide(seed=1)
    other, of_other = tiled_slide(seed=2)
    adata = spots(PLACES, library_id=["a", "b", "a", "b"])
    options = {"library_key": "library_id", "standardize": False}
    pp.tile_embeddings(adata, {"a": one, "b": other}, "uni2_tiles", **options)
    expected = [of_one[0], of_other[8], of_one[35], of_other[25]]
    np.testing.assert_array_equal(adata.obsm["X_image"], expected)
    with pytest.warns(UserWarning, match="2 spots"):
        pp.tile_embeddings(adata, {"b": other}, "uni2_tiles", **options)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_image"][:, 0]), [True, False, True, False])


def test_a_model_takes_them_and_refuses_those_of_another_model(small):
    of_tiles, _ = tiled_slide(40)
    of_tiles.tables["virchow_tiles"] = of_tiles.tables["uni2_tiles"]
    adata, other = small.tissue(), small.tissue(seed=1)
    for data, table in ((adata, "uni2_tiles"), (other, "virchow_tiles")):
        data.obsm["spatial"] = 1 + 398 * (data.obsm["spatial"] - data.obsm["spatial"].min(axis=0)) / np.ptp(
            data.obsm["spatial"]
        )
        pp.tile_embeddings(data, of_tiles, table)
    model = small.fit(small.build(adata, image_key="X_image"), max_epochs=1)
    with pytest.raises(ValueError, match="(?s)virchow_tiles.*uni2_tiles"):
        model.get_completed_expression(other, **small.READ)


def unembedded(of_tiles):
    of_tiles.tables["uni2_tiles"].X[3, 1] = np.nan


def shapeless(of_tiles):
    del of_tiles.shapes["tiles"]


MISTAKES = {
    "no table": ({"table_key": "uni_tiles"}, None, KeyError, "uni_tiles.*uni2_tiles"),
    "no positions": ({"spatial_key": "place"}, None, KeyError, "place"),
    "elsewhere": ({"scale": 1000}, None, ValueError, r"No spot.*5000.*tiles within.*60.*scale="),
    "no scale": ({"scale": 0}, None, ValueError, "scale"),
    "taken": ({"key_added": "mine"}, None, ValueError, "mine.*replace"),
    "library without slides": ({"library_key": "library_id"}, None, ValueError, "dictionary"),
    "unknown column": ({"library_key": "mouse"}, None, KeyError, "mouse.*library_id"),
    "not finite": ({}, unembedded, ValueError, "uni2_tiles.*not finite"),
    "without outlines": ({}, shapeless, KeyError, "tiles"),
}


@pytest.mark.parametrize("positions", [np.zeros(4), np.full((4, 2), np.nan)])
def test_positions_are_checked(positions):
    adata = spots(PLACES)
    adata.obsm["spatial"] = positions
    with pytest.raises(ValueError, match="adata.obsm\\['spatial'\\] (has shape|has NaN or infinite positions)"):
        pp.tile_embeddings(adata, tiled_slide()[0], "uni2_tiles")


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_refused_and_nothing_is_written(case):
    options, change, error, words = MISTAKES[case]
    of_tiles, _ = tiled_slide()
    if change is not None:
        change(of_tiles)
    adata = spots(PLACES, library_id="a")
    adata.obsm["mine"] = np.zeros((4, 2))
    with pytest.raises(error, match=f"(?s){words}"):
        pp.tile_embeddings(adata, of_tiles, **({"table_key": "uni2_tiles"} | options))
    assert "X_image" not in adata.obsm


def test_slides_that_do_not_fit_are_named():
    one, _ = tiled_slide()
    adata = spots(PLACES, library_id=["a", "b", "a", "b"])
    with pytest.raises(KeyError, match=r"'c'.*'a', 'b'"):
        pp.tile_embeddings(adata, {"c": one}, "uni2_tiles", library_key="library_id")
    narrow, _ = tiled_slide()
    narrow.tables["uni2_tiles"] = narrow.tables["uni2_tiles"][:, :2].copy()
    with pytest.raises(ValueError, match=r"'a': 4, 'b': 2"):
        pp.tile_embeddings(adata, {"a": one, "b": narrow}, "uni2_tiles", library_key="library_id")
