"""Spots and genes without a count are completed: the spots from their surroundings, the genes as close to zero."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST, pp

SPOTS, GENES = [2, 9, 77], [5, 17]
SETUP = {"library_key": "library_id"}
UNSAID = pytest.mark.filterwarnings("ignore:.*has no count for")


def emptied(adata, spots=SPOTS, genes=GENES):
    counts = adata.layers["counts"].toarray()
    counts[spots], counts[:, genes] = 0, 0
    adata.layers["counts"] = adata.X = sparse.csr_matrix(counts)
    return adata


@pytest.fixture(scope="module")
def model(small):
    with pytest.warns(UserWarning, match="no count for 3 spots .* no count for 2 genes"):
        model = small.build(emptied(small.tissue(n_libraries=2)), **SETUP)
    return small.fit(model)


def read(model, small, adata=None, **options):
    return model.get_completed_expression(adata, return_numpy=True, **(small.READ | options))


def test_the_setup_warns_once_and_at_the_callers_line(small):
    adata = emptied(small.tissue(n_libraries=2))
    with pytest.warns(UserWarning) as caught:
        LGDiST.setup_anndata(adata, layer="counts", **SETUP)
    (said,) = caught
    assert said.filename == __file__
    assert "3 spots ('section_1_spot_3', 'section_1_spot_10', 'section_2_spot_3')" in str(said.message)
    assert "2 genes ('gene_6', 'gene_18')" in str(said.message)


@pytest.mark.filterwarnings("error:.*no count")
def test_all_read_outs_are_finite(model, small):
    for scale in ("log1p", "rate", "counts"):
        for options in ({}, {"keep_observed": True}, {"read_out": "detected"}, {"n_samples": 0}):
            values = read(model, small, scale=scale, **options)
            assert np.isfinite(values).all() and (values >= 0).all(), (scale, options)
        mean, std = read(model, small, scale=scale, return_std=True)
        assert np.isfinite(std).all() and (std > 0).all()
        np.testing.assert_array_equal(read(model, small, scale=scale), mean)
    for quantile in model.get_count_quantiles(**small.READ).values():
        assert np.isfinite(quantile.to_numpy()).all()
    assert np.isfinite(model.get_latent_representation()).all()
    for metrics in model.history.values():
        for table in metrics.values():
            assert np.isfinite(table.to_numpy()).all()


def test_genes_are_completed_as_close_to_zero(model, small):
    counts = read(model, small, scale="counts")
    # Less than one count of each in the whole tissue.
    assert 0 < counts[:, GENES].sum(axis=0).min() <= counts[:, GENES].sum(axis=0).max() < 0.8


@UNSAID
def test_spots_are_completed_as_if_they_were_not_observed(model, small):
    adata = emptied(small.tissue(n_libraries=2))
    adata.layers["observed"] = ~np.isin(np.arange(150), SPOTS)[:, None].repeat(40, axis=1)
    other = small.fit(small.build(adata, observed_layer="observed", **SETUP))
    np.testing.assert_array_equal(read(other, small), read(model, small))
    # So they are no poorer than the tissue around them.
    counts = read(model, small, scale="counts").sum(axis=1)
    assert counts[SPOTS].min() > 0.5 * np.median(counts)


@UNSAID
def test_a_depth_of_zero_is_unknown_and_another_is_known(model, small):
    adata = emptied(small.tissue(n_libraries=2))
    adata.obs["depth"] = np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    counts = [read(model, small, scale="counts")]
    for depth in (0, 1500):
        adata.obs.loc[adata.obs_names[SPOTS], "depth"] = depth
        other = small.fit(small.build(adata, size_factor_key="depth", **SETUP))
        counts.append(read(other, small, scale="counts"))
    np.testing.assert_array_equal(counts[1], counts[0])
    assert counts[2][SPOTS].sum() < 0.5 * counts[1][SPOTS].sum()


def test_scores(model, small):
    scores = model.evaluate_completion(**small.READ)
    assert np.isfinite(scores.to_numpy()).all()
    entries = model.get_held_out_entries(**small.READ)
    assert np.isfinite(entries.select_dtypes("number").to_numpy()).all()
    # What was not measured cannot be scored; the zeros of the genes were.
    assert not entries["spot"].isin(model.adata.obs_names[SPOTS]).any()
    assert entries["gene"].isin(model.adata.var_names[GENES]).any()


@pytest.mark.filterwarnings("error:.*no count for .* gene", "ignore:These spots express", "ignore:Held-out entries")
def test_new_data(model, small):
    adata = emptied(small.tissue(n_libraries=2, n_spots=80, seed=8), [0, 50], [7])
    with pytest.warns(UserWarning, match="no count for 2 spots") as caught:
        values = read(model, small, adata)
    (said,) = (warning for warning in caught if "no count" in str(warning.message))
    assert said.filename == __file__
    assert np.isfinite(values).all()
    with pytest.warns(UserWarning, match="no count for 2 spots"):
        assert np.isfinite(model.evaluate_completion(adata, fraction=0.3, **small.READ).to_numpy()).all()
    with pytest.warns(UserWarning, match="no count for 2 spots"):
        assert np.isfinite(model.get_latent_representation(adata)).all()


@UNSAID
def test_layers_files_and_saved_models(model, small, tmp_path):
    completed = read(model, small)
    adata = emptied(small.tissue(n_libraries=2))
    model.add_completed_layer(adata, **small.READ)
    np.testing.assert_array_equal(adata.layers["lgdist"], completed)
    model.write_completed(tmp_path / "completed.h5ad", **small.READ)
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "completed.h5ad").layers["lgdist"], completed)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = LGDiST.load(tmp_path / "model")
    np.testing.assert_array_equal(read(loaded, small), completed)
    pd.testing.assert_frame_equal(loaded.evaluate_completion(**small.READ), model.evaluate_completion(**small.READ))


@UNSAID
@pytest.mark.filterwarnings("ignore:Held-out entries are predicted no better")
@pytest.mark.parametrize("options", [{"loss": "log"}, {"condition": "neighbors"}, {"n_factors": 0}])
def test_other_options(small, options):
    model = small.fit(small.build(emptied(small.tissue(n_libraries=2)), options, image_key="X_image", **SETUP))
    for read_out in ("expected", "detected"):
        assert np.isfinite(read(model, small, read_out=read_out)).all()
    assert np.isfinite(model.evaluate_completion(**small.READ).to_numpy()).all()


@UNSAID
def test_chosen_genes(small):
    adata = emptied(small.tissue(n_libraries=2))
    panel = pp.select_genes(adata, layer="counts", n_target=10, n_context=20, library_key="library_id")
    assert not panel.var_names.isin(adata.var_names[GENES]).any()
    with pytest.warns(UserWarning, match="no count for 3 spots"):
        model = small.build(panel, size_factor_key="total_counts", target_genes_key="target_gene", **SETUP)
    assert np.isfinite(read(small.fit(model), small)).all()


@UNSAID
def test_hardly_any_count_is_enough(small):
    """As in a section whose counts were thinned to a few per cent: most spots and genes have none."""
    adata = small.tissue(n_libraries=2)
    counts = np.zeros(adata.shape, dtype=np.float32)
    for library in range(2):
        counts[np.arange(5) + 75 * library, np.arange(5)] = 1
    adata.layers["counts"] = sparse.csr_matrix(counts)
    model = small.fit(small.build(adata, **SETUP))
    for options in ({}, {"scale": "counts"}, {"read_out": "detected"}):
        assert np.isfinite(read(model, small, **options)).all()
