"""Registrations end with what they are of: nothing is kept of data and models that are gone."""

import copy
import gc
import os
import pickle
import re
import weakref

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST


def test_data_and_models_are_forgotten(small):
    adata, other = small.tissue(), small.tissue(seed=1)
    model = small.fit(small.build(adata), max_epochs=1)
    model.get_completed_expression(other, **small.READ)
    gone = [weakref.ref(thing) for thing in (adata, other, model, model.module)]
    stores = LGDiST._setup_adata_manager_store, LGDiST._per_instance_manager_store
    del adata, other, model
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4
    assert not any(gone[0]() is manager.adata for manager in stores[0].values())


def test_new_data_is_forgotten_while_the_model_lives(small, trained):
    other = small.tissue(n_libraries=2, seed=1)
    other.layers["observed"] = np.ones(other.shape, dtype=bool)
    trained.get_completed_expression(other, **small.READ)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_data_is_registered_once(small, monkeypatch):
    """What a model has met it knows again, and several models share a registration."""
    adata, other = small.tissue(), small.tissue(seed=1)
    first, second = small.build(adata), LGDiST(adata, **small.OPTIONS)
    small.fit(first, max_epochs=1)
    first.get_completed_expression(other, **small.READ)
    gc.collect()
    manager = first.get_anndata_manager(other, required=True)
    first.get_completed_expression(other, **small.READ)
    assert first.get_anndata_manager(other, required=True) is manager
    assert first.adata_manager is second.adata_manager
    del first
    gc.collect()
    assert LGDiST(adata, **small.OPTIONS).adata_manager is second.adata_manager


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda adata: pickle.loads(pickle.dumps(adata)),
    "own": lambda adata: adata.copy(),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_are_registered_anew(small, trained, duplicate):
    adata = duplicate(trained.adata)
    expected = trained.get_completed_expression(return_numpy=True, **small.READ)
    np.testing.assert_array_equal(trained.get_completed_expression(adata, return_numpy=True, **small.READ), expected)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files cannot be counted here")
def test_cycles_leave_no_files_open(small, tmp_path):
    counts = []
    for number in range(4):
        model = small.fit(small.build(small.tissue(seed=number)), max_epochs=1)
        model.write_completed(tmp_path / f"{number}.h5ad", **small.READ)
        model.save(tmp_path / f"model_{number}", save_anndata=True)
        LGDiST.load(tmp_path / f"model_{number}").get_completed_expression(**small.READ)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[-1] == counts[1]


REGISTERED = {
    "library_key": "library_id",
    "batch_key": "domain",
    "image_key": "X_image",
    "size_factor_key": "total",
}


def registered(small, **options):
    adata = small.tissue(**({"n_libraries": 2} | options))
    adata.obs["total"] = 5000.0
    return adata


@pytest.fixture(scope="module")
def guarded(small):
    model = small.build(registered(small), **REGISTERED)
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    return model


def _put(adata, attribute, key, change):
    values = getattr(adata, attribute)[key].copy()
    getattr(adata, attribute)[key] = change(values)


def _infinite(values):
    values[0, 0] = np.inf
    return values


CHANGES = {
    "positions": ("obsm", "spatial", lambda values: 2 * values, "obsm['spatial'] has changed"),
    "images": ("obsm", "X_image", lambda values: values + 1, "obsm['X_image'] has changed"),
    "infinite images": ("obsm", "X_image", _infinite, "obsm['X_image'] has changed"),
    "fewer image columns": ("obsm", "X_image", lambda values: values[:, 1:], "obsm['X_image'] has changed"),
    "libraries": ("obs", "library_id", lambda values: np.roll(values.to_numpy(), 9), "obs['library_id'] has changed"),
    "batches": ("obs", "domain", lambda values: np.roll(values.to_numpy(), 9), "obs['domain'] has changed"),
    "depth": ("obs", "total", lambda values: values * 2, "obs['total'] has changed"),
    "depth NaN": ("obs", "total", lambda values: values.where(values.index != "section_1_spot_3"), "obs['total'] has"),
    "graph zeroed": ("obsp", "lgdist_connectivities", lambda values: values * 0, "connectivities'] has changed"),
    "graph replaced": ("obsp", "lgdist_connectivities", lambda values: values[::-1], "connectivities'] has changed"),
    "distances": ("obsp", "lgdist_distances", lambda values: values * 2, "lgdist_distances'] has changed"),
}


@pytest.mark.parametrize(("attribute", "key", "change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_changed_since_it_was_registered_is_refused(small, guarded, attribute, key, change, message):
    before = getattr(guarded.adata, attribute)[key].copy()
    try:
        _put(guarded.adata, attribute, key, change)
        for use in (guarded.get_latent_representation, guarded.evaluate_completion, guarded.train_autoencoder):
            with pytest.raises(ValueError, match=re.escape(message) + ".*Set it back.*setup_anndata again"):
                use()
    finally:
        getattr(guarded.adata, attribute)[key] = before
    guarded.get_latent_representation()


def test_what_is_missing_since_it_was_registered_is_named(guarded):
    adata = guarded.adata
    for attribute, key in (("obs", "total"), ("obsp", "lgdist_distances"), ("obsm", "X_image")):
        values = getattr(adata, attribute)[key]
        del getattr(adata, attribute)[key]
        with pytest.raises(ValueError, match=re.escape(f"adata.{attribute}[{key!r}] is missing since setup_anndata")):
            guarded.get_latent_representation()
        getattr(adata, attribute)[key] = values
    guarded.get_latent_representation()


def test_names_of_groups_and_kinds_of_numbers_may_change(guarded):
    adata, expected = guarded.adata, guarded.get_latent_representation()
    adata.obs["library_id"] = adata.obs["library_id"].astype(str).str.upper()
    adata.obs["total"] = adata.obs["total"].astype(int)
    np.testing.assert_array_equal(guarded.get_latent_representation(), expected)


def test_what_was_registered_is_known_without_uns(small, guarded):
    adata = guarded.adata.copy()
    model = small.build(adata, **REGISTERED)
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    expected = model.get_latent_representation()
    adata.uns.clear()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    adata.uns.clear()
    adata.obs["total"] *= 2
    with pytest.raises(ValueError, match="total.* has changed since setup_anndata"):
        model.get_latent_representation()


def test_new_data_that_changed_is_registered_again(small, guarded):
    """A model that has met them before does not take the old graph."""
    other, expected = (registered(small, seed=1, n_spots=60) for _ in range(2))
    guarded.get_latent_representation(other)
    for adata in (other, expected):
        adata.obsm["spatial"] = np.random.default_rng(0).permutation(adata.obsm["spatial"])
    codes = guarded.get_latent_representation(expected)
    np.testing.assert_array_equal(guarded.get_latent_representation(other), codes)
    other.obsp["lgdist_connectivities"].data[:] = 0
    np.testing.assert_array_equal(guarded.get_latent_representation(other), codes)
    # Neither does a model that has not.
    copied = other.copy()
    copied.obsp["lgdist_connectivities"].data[:] = 0
    np.testing.assert_array_equal(guarded.get_latent_representation(copied), codes)


def test_dropped_spots_are_checked_like_new_data(small, guarded):
    adata = guarded.adata.copy()
    model = small.build(adata, **REGISTERED)
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    some = adata[:100].copy()
    adata._inplace_subset_obs(np.arange(100))
    np.testing.assert_array_equal(model.get_latent_representation(), model.get_latent_representation(some))
    adata._inplace_subset_obs(np.arange(90))
    adata.obsm["X_image"][0, 0] = np.inf
    with pytest.raises(ValueError, match=r"X_image.* infinite values .*section_1_spot_1'"):
        model.get_latent_representation()


def test_models_of_one_adata_train_on_their_own_graphs(small):
    adata = small.tissue()
    first, second = (small.build(adata, n_neighbors=number) for number in (6, 3))
    alone = small.build(small.tissue(), n_neighbors=6)
    for model in (first, alone):
        model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    assert first._view().graph.nnz == alone._view().graph.nnz > second._view().graph.nnz
    np.testing.assert_array_equal(first.get_latent_representation(), alone.get_latent_representation())


@pytest.mark.parametrize("owned", ["obsp", "uns"])
def test_a_graph_of_the_user_is_not_replaced(small, trained, owned):
    """In setup, and for new data; the user's may have any name."""
    adata = small.hide(small.tissue(n_libraries=2, seed=3))
    graph = sparse.identity(adata.n_obs, format="csr")
    if owned == "obsp":
        adata.obsp["lgdist_connectivities"] = graph
    else:
        adata.uns["lgdist_neighbors"] = {"params": {"method": "mine"}}
    for use in (lambda adata: small.build(adata, library_key="library_id"), trained.get_latent_representation):
        with pytest.raises(ValueError, match=r"not written by setup_anndata.*neighbors_key='lgdist'"):
            use(adata)
    assert owned == "uns" or (adata.obsp["lgdist_connectivities"] != graph).nnz == 0
