"""Registrations end with what they are of: nothing is kept of data and models that are gone."""

import copy
import gc
import os
import pickle
import weakref

import numpy as np
import pytest

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
