"""One model with and without images; places that have nothing but an image."""

import re

import numpy as np
import pytest
from anndata import AnnData

from lgdist_scvi import pp

SETUP = {"library_key": "library_id", "image_key": "X_image"}


@pytest.fixture(scope="module")
def learned(small):
    """A model that has learned what the images of two sections tell, and a third section; not to be changed."""
    adata = small.tissue(n_spots=450, n_libraries=3)
    adata.layers["observed"] = np.ones(adata.shape, dtype=bool)
    third = (adata.obs["library_id"] == "section_3").to_numpy()
    model = small.build(adata[~third].copy(), observed_layer="observed", **SETUP)
    return small.fit(model, max_epochs=40), adata[third].copy()


def marker_correlation(predicted, truth):
    """Mean Pearson correlation of the marker genes over spots, of logs."""
    markers = (truth.var["marker_of"] != "none").to_numpy()
    x, y = predicted.to_numpy()[:, markers], np.log(np.asarray(truth.layers["rate"])[:, markers])
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return ((x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))).mean()


def without_images(adata):
    other = adata.copy()
    other.obsm["X_image"] = np.full_like(adata.obsm["X_image"], np.nan)
    return other


def test_a_row_of_nan_is_a_spot_without_an_image(trained, small):
    options = {"return_numpy": True, **small.READ}
    off = trained.get_completed_expression(use_image=False, **options)
    np.testing.assert_array_equal(trained.get_completed_expression(without_images(trained.adata), **options), off)
    with_image = trained.get_completed_expression(**options)
    assert not np.array_equal(with_image, off)
    some = trained.adata.copy()
    far = np.arange(some.n_obs) >= some.n_obs // 2  # the second section
    some.obsm["X_image"][far] = np.nan
    both = trained.get_completed_expression(some, **options)
    np.testing.assert_array_equal(both[far], off[far])
    np.testing.assert_array_equal(both[~far], with_image[~far])


def test_training_with_some_images(small):
    adata = small.hide(small.tissue(n_libraries=2))
    adata.obsm["X_image"][::3] = np.nan
    model = small.fit(small.build(adata, observed_layer="observed", **SETUP))
    assert np.isfinite(model.get_completed_expression(return_numpy=True, **small.READ)).all()


def test_evaluation_and_layer_say_whether_images_were_used(trained, small):
    scores = [trained.evaluate_completion(use_image=use, **small.READ).loc["lgdist", "d2"] for use in (True, False)]
    assert scores[0] != scores[1]
    adata = trained.adata.copy()
    trained.add_completed_layer(adata, use_image=False, **small.READ)
    assert adata.uns["lgdist"]["use_image"] is False


def test_the_image_alone_tells_the_expression_of_an_unseen_section(learned, small):
    model, third = learned
    places = AnnData(obs=third.obs[["library_id"]], obsm={key: third.obsm[key] for key in ("spatial", "X_image")})
    predicted = model.predict_expression(places, **small.READ)
    assert predicted.index.equals(third.obs_names) and predicted.columns.equals(third.var_names)

    shuffled = places.copy()
    shuffled.obsm["X_image"] = np.random.default_rng(0).permutation(places.obsm["X_image"])
    right, wrong = (marker_correlation(model.predict_expression(p, **small.READ), third) for p in (places, shuffled))
    assert right > 0.3 and abs(wrong) < 0.15, (right, wrong)


def test_prediction_from_images_reads_no_counts(learned, small):
    model, third = learned
    bare = AnnData(obs=third.obs[["library_id"]], obsm={key: third.obsm[key] for key in ("spatial", "X_image")})
    for predict in (
        lambda data: model.predict_expression(data, **small.READ).to_numpy(),
        lambda data: model.predict_expression(data, return_std=True, **small.READ)[1].to_numpy(),
    ):
        np.testing.assert_array_equal(predict(third), predict(bare))


def test_prediction_from_images_follows_places(learned, small):
    model, third = learned
    full = model.predict_expression(third, **small.READ)
    order = np.random.default_rng(1).permutation(third.n_obs)
    moved = model.predict_expression(third[order].copy(), ["gene_7", "gene_3"], batch_size=17, **small.READ)
    assert list(moved.columns) == ["gene_7", "gene_3"]
    np.testing.assert_allclose(moved, full.iloc[order][["gene_7", "gene_3"]], rtol=1e-4, atol=1e-5)


def test_spots_with_all_genes_hidden_are_as_the_image_says(learned, small):
    """With neighbours measured, the images of hidden spots still improve their prediction."""
    model, third = learned
    hidden = np.arange(third.n_obs) % 3 == 0
    third = third.copy()
    third.layers["observed"] = np.repeat(~hidden[:, None], third.n_vars, axis=1)
    with_image, without = (
        marker_correlation(
            model.get_completed_expression(third, np.flatnonzero(hidden), use_image=use, **small.READ), third[hidden]
        )
        for use in (True, False)
    )
    assert with_image > without + 0.02, (with_image, without)


def places(adata):
    return AnnData(obs=adata.obs[["library_id"]].copy(), obsm={key: adata.obsm[key] for key in ("spatial", "X_image")})


def drop(key):
    def change(data):
        del data.obsm[key]

    return change


def put(key, values):
    def change(data):
        data.obsm[key] = values(data.obsm[key].copy())

    return change


def nan_row(values):
    values[4] = np.nan
    return values


def nan_entry(values):
    values[4, 1] = np.nan
    return values


BAD_PLACES = {
    "no positions": (drop("spatial"), KeyError, ["spatial"]),
    "no embeddings": (drop("X_image"), KeyError, ["X_image"]),
    "place without image": (put("X_image", nan_row), ValueError, ["no image", "section_3_spot_5"]),
    "half an image": (put("X_image", nan_entry), ValueError, ["section_3_spot_5", "the whole row"]),
    "other features": (put("X_image", lambda v: v[:, :5]), ValueError, ["5 image features", "trained with 8"]),
    "position NaN": (put("spatial", nan_row), ValueError, ["section_3_spot_5"]),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places(case, learned, small):
    change, error, words = BAD_PLACES[case]
    data = places(learned[1])
    change(data)
    with pytest.raises(error, match=r"(?s)" + ".*".join(map(re.escape, words))):
        learned[0].predict_expression(data, **small.READ)


def test_a_model_without_images_predicts_no_places(small):
    model = small.fit(small.build(small.tissue()), max_epochs=1)
    with pytest.raises(ValueError, match="trained without images.*image_key"):
        model.predict_expression(small.tissue(seed=1), **small.READ)


def test_embeddings_made_otherwise_are_refused(small):
    adata = small.tissue()
    pp.image_embeddings(adata, silent=True)
    model = small.fit(small.build(adata, image_key="X_image"), max_epochs=1)
    same, other = small.tissue(seed=1), small.tissue(seed=1)
    pp.image_embeddings(same, silent=True)
    pp.image_embeddings(other, patch_size=6, silent=True)
    for ask in (model.get_completed_expression, model.predict_expression):
        assert ask(same, **small.READ).shape == same.shape
        with pytest.raises(ValueError, match="(?s)'patch_size': 6.0.*'patch_size': 4.0.*image_embeddings"):
            ask(other, **small.READ)
