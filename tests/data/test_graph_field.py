"""The graph in scvi-tools' AnnDataManager: setup, transfer, subsets, reloading."""

import pickle
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import rich.pretty  # noqa: F401  scvi-tools 1.4.2 uses it without importing it
from scipy import sparse
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from lgdist_scvi._constants import REGISTRY_KEYS
from lgdist_scvi.data._graph_field import SpatialGraphField

KEY = "lgdist_connectivities"


def tissue(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(2.0, (n, 4)).astype(np.float32)),
        obs=pd.DataFrame({"library_id": pd.Categorical(["x", "y"] * (n // 2))}, index=[f"s{i}" for i in range(n)]),
        obsm={"spatial": rng.uniform(0, 100, (n, 2))},
    )


def manager(adata, source_registry=None, **kwargs):
    kwargs = {"spatial_key": "spatial", "library_key": "library_id", "n_neighbors": 4} | kwargs
    result = AnnDataManager(
        fields=[LayerField(REGISTRY_KEYS.X, None), SpatialGraphField(**kwargs)],
        setup_method_args={"model_name": "Test", "setup_args": {}},
    )
    result.register_fields(adata, source_registry=source_registry)
    return result


def test_graph_never_reaches_a_minibatch():
    adata = tissue()
    registered = manager(adata)
    assert adata.obsp[KEY].shape == (60, 60)
    assert list(registered.data_registry) == [REGISTRY_KEYS.X]
    assert set(registered.create_torch_dataset()[[0, 1]]) == {REGISTRY_KEYS.X}


def test_state_is_plain_and_printable(capsys):
    registered = manager(tissue())
    state = registered.get_state_registry(REGISTRY_KEYS.GRAPH)
    assert dict(state) == {
        "connectivities_key": KEY,
        "distances_key": "lgdist_distances",
        "n_neighbors": 4,
        "built": True,
    }
    assert registered.summary_stats["n_neighbors"] == 4
    restored = pickle.loads(pickle.dumps(registered.registry))["field_registries"]["neighbors"]
    assert restored["state_registry"] == dict(state)
    registered.view_registry()
    assert KEY in capsys.readouterr().out


def test_setup_always_builds_anew():
    adata = tissue()
    manager(adata)
    before = adata.obsp[KEY].copy()
    adata.obsp[KEY].data[:] = 0
    manager(adata)
    assert (adata.obsp[KEY] != before).nnz == 0
    manager(adata, n_neighbors=7)
    assert adata.obsp[KEY].nnz > before.nnz
    subset = adata[:20].copy()
    sliced = subset.obsp[KEY].nnz
    manager(subset)
    assert subset.obsp[KEY].nnz != sliced


def test_subset_handed_to_a_model_keeps_the_edges_of_its_parent():
    adata = tissue()
    registered = manager(adata)
    subset = adata[np.random.default_rng(1).permutation(60)[:25]].copy()
    sliced = subset.obsp[KEY].copy()
    assert 0 < sliced.nnz < 25 * 3
    transferred = registered.transfer_fields(subset)
    assert (subset.obsp[KEY] != sliced).nnz == 0
    assert transferred.get_state_registry("neighbors") == registered.get_state_registry("neighbors")


def test_new_section_gets_its_own_graph():
    registered = manager(tissue())
    new = tissue(80, seed=5)
    registered.transfer_fields(new)
    expected = tissue(80, seed=5)
    manager(expected)
    assert (new.obsp[KEY] != expected.obsp[KEY]).nnz == 0


@pytest.mark.parametrize(
    "stale",
    ["other_k", "moved", "zeroed", "weighted", "no_distances", "more_edges", "other_library_key"],
)
def test_graph_that_does_not_fit_is_built_anew(stale):
    registered = manager(tissue())
    new = tissue(80, seed=5)
    manager(
        new,
        n_neighbors=6 if stale == "other_k" else 4,
        library_key=None if stale == "other_library_key" else "library_id",
    )
    if stale == "moved":
        new.obsm["spatial"] = np.random.default_rng(2).permutation(new.obsm["spatial"])
    elif stale in ("zeroed", "weighted"):
        new.obsp[KEY].data[:] = 0 if stale == "zeroed" else 2
    elif stale == "no_distances":
        del new.obsp["lgdist_distances"]
        new.obsp[KEY] = sparse.csr_matrix((80, 80))
    elif stale == "more_edges":
        manager(new, n_neighbors=7)
        new.uns["lgdist_neighbors"]["params"]["n_neighbors"] = 4
    expected = new.copy()
    manager(expected)
    registered.transfer_fields(new)
    assert (new.obsp[KEY] != expected.obsp[KEY]).nnz == 0
    assert "lgdist_neighbors" in new.uns


@pytest.mark.parametrize("key", [KEY, "lgdist_distances"])
def test_graph_of_unknown_origin_is_not_replaced(key):
    registered = manager(tissue())
    new = tissue(80, seed=5)
    new.obsp[key] = sparse.identity(80, format="csr")
    for register in (manager, registered.transfer_fields):
        with pytest.raises(ValueError, match=f"adata has obsp..{key}.*neighbors_key='lgdist'.*delete it"):
            register(new)
    assert new.obsp[key].diagonal().all() and not new.uns
    # That which is built anyway may be of unknown origin.
    manager(new := tissue())
    del new.uns["lgdist_neighbors"], new.uns["_scvi_manager_uuid"]
    registered.transfer_fields(new)
    assert "lgdist_neighbors" in new.uns


def test_reloaded_data_keeps_its_graph(tmp_path):
    adata = tissue()
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(np.float32)
    registered = manager(adata)
    subset = adata[:30].copy()
    subset.write_h5ad(tmp_path / "subset.h5ad")
    loaded = ad.read_h5ad(tmp_path / "subset.h5ad")
    manager(loaded, source_registry=registered.registry)
    assert (loaded.obsp[KEY] != subset.obsp[KEY]).nnz == 0


def test_registration_is_replayed_after_another_manager():
    adata = tissue()
    first = manager(adata)
    before = adata.obsp[KEY].copy()
    manager(adata, n_neighbors=8)
    assert adata.obsp[KEY].nnz > before.nnz
    first.validate()
    assert (adata.obsp[KEY] != before).nnz == 0


def user_graph(adata, edges):
    graph = sparse.lil_matrix((adata.n_obs, adata.n_obs))
    for i, j in edges:
        graph[i, j] = 1
    adata.obsp["mine_connectivities"] = graph.tocsr()


def test_user_graph_is_used_as_it_is():
    adata = tissue()
    user_graph(adata, [(0, 2), (2, 4), (1, 3)])
    before = adata.obsp["mine_connectivities"].copy()
    registered = manager(adata, neighbors_key="mine")
    assert (adata.obsp["mine_connectivities"] != before).nnz == 0
    assert KEY not in adata.obsp
    state = registered.get_state_registry("neighbors")
    assert state["connectivities_key"] == "mine_connectivities"
    assert not state["built"]
    with pytest.raises(KeyError, match=r"mine_connectivities.*squidpy.gr.spatial_neighbors_knn.*key_added='mine'"):
        registered.transfer_fields(tissue(80, seed=5))


def test_user_graph_must_exist():
    with pytest.raises(KeyError, match=r"mine_connectivities.*leave out neighbors_key"):
        manager(tissue(), neighbors_key="mine")


def test_user_graph_must_not_cross_libraries():
    adata = tissue()
    user_graph(adata, [(0, 2), (6, 9)])
    with pytest.raises(ValueError, match=r"spot 's6' to spot 's9'.*'x' and 'y'.*library_key='library_id'"):
        manager(adata, neighbors_key="mine")
    manager(adata, neighbors_key="mine", library_key=None)


def test_user_graph_must_be_finite():
    adata = tissue()
    user_graph(adata, [(0, 2), (6, 8)])
    adata.obsp["mine_connectivities"].data[1] = np.nan
    with pytest.raises(ValueError, match=r"NaN, infinite or negative.*'s6' and 's8'"):
        manager(adata, neighbors_key="mine")


def test_another_largest_distance_builds_the_graph_anew():
    adata = tissue()
    near = SpatialGraphField("spatial", max_distance=5.0)
    state = near.register_field(adata)
    few = adata.obsp["lgdist_connectivities"].nnz
    SpatialGraphField("spatial").register_field(adata)
    assert adata.obsp["lgdist_connectivities"].nnz > few
    near.transfer_field(state, adata)
    assert adata.obsp["lgdist_connectivities"].nnz == few


@pytest.mark.parametrize("key", ["mine_connectivities", "mine_distances"])
def test_user_graph_must_not_be_negative(key):
    adata = tissue()
    user_graph(adata, [(i, (i + 2) % 60) for i in range(60)])
    adata.obsp["mine_distances"] = adata.obsp["mine_connectivities"].copy()
    adata.obsp[key].data[1] = -0.5
    with pytest.raises(ValueError, match=rf"{key}.*negative entries, the first \(-0.5\) between spots 's1' and 's3'"):
        manager(adata, neighbors_key="mine")


def test_user_graph_without_edges():
    adata = tissue()
    user_graph(adata, [])
    with pytest.warns(UserWarning, match=r"mine_connectivities'\] has no edge within the libraries 'x', 'y', so that"):
        manager(adata, neighbors_key="mine")
    with pytest.warns(UserWarning, match=r"has no edge, so that each spot .* leave out neighbors_key"):
        manager(adata, neighbors_key="mine", library_key=None)
    user_graph(adata, [(0, 2), (2, 4)])
    with pytest.warns(UserWarning, match="has no edge within the libraries 'y'"):
        manager(adata, neighbors_key="mine")
    # A part of a tissue may have lost its edges.
    user_graph(adata, [(0, 2), (1, 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        manager(adata, neighbors_key="mine").transfer_fields(adata[20:].copy())


def test_user_graph_with_more_neighbours_than_are_seen():
    adata = tissue()
    user_graph(adata, [(i, j) for i in range(60) for j in range(i % 2, 60, 2) if i != j])
    with pytest.warns(UserWarning, match=r"up to 29 neighbours per spot, .* the nearest 4; pass n_neighbors=29"):
        manager(adata, neighbors_key="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        manager(adata, neighbors_key="mine", n_neighbors=29)
