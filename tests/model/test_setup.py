"""Bad input is refused by `setup_anndata` and by the read-outs of new data, before anything is computed or changed.

The checks themselves are tested in ``tests/data/test_validation.py``.
"""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST

SETUP = {"layer": "counts", "library_key": "library_id", "image_key": "X_image"}


def entry(value):
    def change(adata):
        adata.layers["counts"][4, adata.layers["counts"][4].indices[0]] = value
        return adata

    return change


def layer(function):
    def change(adata):
        adata.layers["counts"] = function(adata.layers["counts"])
        return adata

    return change


def zero(rows=slice(None), cols=slice(None)):
    def change(counts):
        dense = counts.toarray()
        dense[rows, cols] = 0
        return sparse.csr_matrix(dense)

    return layer(change)


def obsm(key, place, value):
    def change(adata):
        adata.obsm[key] = adata.obsm[key].copy()
        adata.obsm[key][place] = value
        return adata

    return change


def overlay(adata):
    adata.obsm["spatial"] = np.tile(adata.obsm["spatial"][: adata.n_obs // 2], (2, 1))
    return adata


def without_positions(adata):
    del adata.obsm["spatial"]
    return adata


def same(adata):
    return adata


CASES = {
    "NaN": (entry(np.nan), {}, ValueError, ["NaN", "section_1_spot_5", "observed_layer"]),
    "inf": (entry(np.inf), {}, ValueError, ["infinite", "section_1_spot_5"]),
    "negative": (entry(-1), {}, ValueError, ["negative", "section_1_spot_5", "raw counts"]),
    "fractions": (entry(0.5), {}, ValueError, ["not whole numbers", "section_1_spot_5", "raw counts", "destriped"]),
    "no positions": (without_positions, {}, KeyError, ["obsm['spatial']", "spatial_key"]),
    "positions NaN": (obsm("spatial", (7, 1), np.nan), {}, ValueError, ["section_1_spot_8", "isfinite"]),
    "sections overlay": (
        overlay,
        {"library_key": None},
        ValueError,
        ["share their position", "library_key='library_id'"],
    ),
    "section without a count": (
        zero(rows=slice(75)),
        {},
        ValueError,
        ["no count in any observed spot", "'section_1'", "obs['library_id']"],
    ),
    "few spots": (same, {"n_neighbors": 75}, ValueError, ["section_1 (75 spots)", "smaller n_neighbors"]),
    "view": (lambda a: a[:100], {}, ValueError, ["view", "adata.copy()"]),
    "csr_array": (layer(sparse.csr_array), {}, TypeError, ["csr_array", "scipy.sparse.csr_matrix"]),
    "image NaN": (obsm("X_image", (3, 2), np.nan), {}, ValueError, ["section_1_spot_4", "X_image"]),
    "no graph": (same, {"neighbors_key": "mine"}, KeyError, ["mine_connectivities", "squidpy"]),
}


def contents(adata):
    return {
        attribute: sorted(map(str, getattr(adata, attribute)))
        for attribute in ("obs", "var", "uns", "obsm", "obsp", "layers", "varm")
    }


@pytest.mark.parametrize(("change", "setup", "error", "parts"), CASES.values(), ids=CASES)
def test_bad_input(small, change, setup, error, parts):
    adata = change(small.tissue(n_libraries=2))
    before = contents(adata)
    with pytest.raises(error) as caught:
        LGDiST.setup_anndata(adata, **(SETUP | setup))
    assert all(part in str(caught.value.args[0]) for part in parts), caught.value
    assert contents(adata) == before


def test_backed(small, tmp_path):
    small.tissue().write_h5ad(tmp_path / "tissue.h5ad")
    adata = ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"backed.*to_memory\(\)"):
        LGDiST.setup_anndata(adata, layer="counts")
    adata.file.close()


QUERY_CASES = [name for name in CASES if name not in ("sections overlay", "few spots", "no graph")]


@pytest.fixture(scope="module")
def model(small):
    return small.fit(small.build(small.tissue(n_libraries=2), **SETUP))


@pytest.mark.parametrize("name", QUERY_CASES)
def test_bad_new_data(small, model, name):
    change, _, error, parts = CASES[name]
    adata = change(small.tissue(n_libraries=2, seed=8))
    before = contents(adata)
    for method in (
        model.get_completed_expression,
        model.get_latent_representation,
        model.evaluate_completion,
        model.add_completed_layer,
    ):
        with pytest.raises(error) as caught:
            method(adata)
        assert all(part in str(caught.value.args[0]) for part in parts), caught.value
    assert contents(adata) == before


def test_new_data_may_be_small_or_lack_counts_of_a_gene(small, model):
    adata = zero(cols=[5])(small.tissue(n_libraries=2, n_spots=20, seed=8))
    del adata.var["marker_of"]
    completed = model.get_completed_expression(adata, return_numpy=True, **small.READ)
    assert completed.shape == (20, 40)
    assert np.isfinite(completed).all()


def test_setup_says_what_it_registered(model, capsys):
    registry = model.adata_manager.registry["setup_args"]
    # Plain values: they are saved with the model and given to setup_anndata when it is loaded.
    assert set(registry) == {
        "layer",
        "spatial_key",
        "library_key",
        "batch_key",
        "image_key",
        "observed_layer",
        "size_factor_key",
        "target_genes_key",
        "neighbors_key",
        "n_neighbors",
        "max_distance",
    }
    assert all(value is None or isinstance(value, str | int) for value in registry.values())
    model.view_anndata_setup()
    print(repr(model))
    shown = capsys.readouterr().out
    assert "lgdist_connectivities" in shown and "LGDiST with 40 genes" in shown
    assert "gene_1," in shown and "gene_40" in shown


def test_set_up_twice(small):
    adata = small.tissue(n_libraries=2)
    first = small.fit(small.build(adata, library_key="library_id"))
    # The first model keeps what it was given, whatever is registered later.
    values = first.get_completed_expression(return_numpy=True, **small.READ)
    small.build(adata, library_key="library_id", n_neighbors=3)
    small.build(adata, layer=None, library_key="library_id")
    again = small.fit(small.build(adata, library_key="library_id"))
    np.testing.assert_array_equal(again.get_completed_expression(return_numpy=True, **small.READ), values)


@pytest.mark.slow
def test_real_section(small, real_data):
    from lgdist_scvi import pp

    adata = ad.read_h5ad(real_data / "dlpfc_visium_151674.h5ad")
    counts = "counts" if "counts" in adata.layers else None
    adata = pp.select_genes(adata, n_target=16, n_context=48, layer=counts)
    model = small.build(adata, layer=counts, target_genes_key="target_gene", size_factor_key="total_counts")
    small.fit(model)
    completed = model.get_completed_expression(**small.READ)
    assert completed.shape == adata.shape
    assert np.isfinite(completed.to_numpy()).all()
    assert np.isfinite(model.evaluate_completion(**small.READ).to_numpy()).all()
