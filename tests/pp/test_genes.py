"""Moran's I against squidpy, and the choice of genes."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from formats import as_spatialdata
from scipy import sparse

from lgdist_scvi import LGDiST
from lgdist_scvi.data import _on_disk
from lgdist_scvi.data._neighbors import spatial_graph
from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.pp import _genes, _moran, select_genes


@pytest.fixture(scope="module")
def tissue():
    return simulated_tissue(300, 80, seed=3)


def squidpy_moran(adata, target_sum=1e4):
    sq = pytest.importorskip("squidpy")
    counts = adata.X.toarray().astype(np.float64)
    copy = ad.AnnData(np.log1p(counts / counts.sum(axis=1, keepdims=True) * target_sum), var=adata.var[[]])
    copy.obsp["spatial_connectivities"], _ = spatial_graph(adata.obsm["spatial"], None, 6)
    return sq.gr.spatial_autocorr(copy, mode="moran", copy=True)["I"].reindex(adata.var_names)


def all_genes(adata, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Only .* genes are detected")
        return select_genes(adata, n_target=adata.n_vars, n_context=0, min_fraction=0, **kwargs)


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 23])
def test_moran_is_squidpys(tissue, chunk, monkeypatch):
    monkeypatch.setattr(_moran, "CHUNK_ENTRIES", chunk)
    result = all_genes(tissue)
    np.testing.assert_allclose(result.var["moran_i"], squidpy_moran(tissue), rtol=1e-4, atol=1e-6)
    assert result.var["moran_i"].max() > 0.5


def test_moran_with_isolated_spots_is_squidpys(tissue):
    adata = tissue.copy()
    adata.obsm["spatial"] = adata.obsm["spatial"].copy()
    adata.obsm["spatial"][:3] += [[1e6, 0], [2e6, 0], [3e6, 0]]
    np.testing.assert_allclose(all_genes(adata).var["moran_i"], squidpy_moran(adata), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*variables were constant:UserWarning")
def test_libraries_weigh_the_same():
    adata = simulated_tissue(301, 60, n_libraries=2, seed=1)
    adata = adata[np.random.default_rng(0).permutation(301)[:260]].copy()
    top = squidpy_moran(adata[adata.obs["library_id"] == "section_2"]).idxmax()
    absent = adata.X.tolil()
    absent[np.flatnonzero(adata.obs["library_id"] == "section_1"), adata.var_names.get_loc(top)] = 0
    adata.X = absent.tocsr()
    # A gene that is absent from a library shows no structure there.
    parts = [squidpy_moran(adata[adata.obs["library_id"] == f"section_{i}"]).fillna(0) for i in (1, 2)]
    assert parts[0][top] == 0 < parts[1][top]
    result = all_genes(adata, library_key="library_id")
    expected = (parts[0] + parts[1])[result.var_names] / 2
    assert top in expected.index
    np.testing.assert_allclose(result.var["moran_i"], expected, rtol=1e-4, atol=1e-6)


def test_ranking_and_columns(tissue):
    before = tissue.copy()
    result = select_genes(tissue, layer="counts", n_target=10, n_context=20, min_fraction=0.1)
    assert result.shape == (300, 30)
    assert not result.is_view
    assert list(result.var_names) == [name for name in tissue.var_names if name in set(result.var_names)]
    assert result.var["target_gene"].dtype == bool
    assert result.var["target_gene"].sum() == 10
    score, target = result.var["moran_i"], result.var["target_gene"]
    assert score[target].min() >= score[~target].max()
    detected = np.asarray((tissue.X > 0).mean(axis=0)).ravel() >= 0.1
    rest = squidpy_moran(tissue)[detected].drop(result.var_names)
    assert rest.max() <= score.min() + 1e-6
    np.testing.assert_allclose(result.obs["total_counts"], np.asarray(tissue.X.sum(axis=1)).ravel())
    assert (tissue.X != before.X).nnz == 0
    assert tissue.var.equals(before.var)
    assert tissue.obs.equals(before.obs)


@pytest.mark.parametrize("to_format", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("mask_format", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_hidden_entries_have_no_influence(tissue, to_format, mask_format):
    rng = np.random.default_rng(0)
    adata = ad.AnnData(tissue.X.toarray(), obs=tissue.obs, var=tissue.var, obsm={"spatial": tissue.obsm["spatial"]})
    observed = rng.random(adata.shape) < 0.7
    observed[11], observed[:, 4] = False, False
    results = []
    for value in (None, 0, 77, -5.5, np.nan):
        one = adata.copy()
        if value is not None:
            one.X[~observed] = value
        one.X = to_format(one.X)
        one.layers["observed"] = mask_format(observed)
        results.append(select_genes(one, n_target=8, n_context=16, observed_layer="observed"))
    for other in results[1:]:
        pd.testing.assert_frame_equal(results[0].var, other.var)
        pd.testing.assert_frame_equal(results[0].obs, other.obs)
    assert tissue.var_names[4] not in results[0].var_names
    depth = np.where(observed, tissue.X.toarray(), 0).sum(axis=1)
    depth[11] = np.median(np.delete(depth, 11))
    np.testing.assert_allclose(results[0].obs["total_counts"], depth)


def test_hiding_at_random_does_not_lower_the_score(tissue):
    # Moran's I over the observed pairs estimates the same quantity; a hidden entry counted as the mean would halve it.
    adata = tissue.copy()
    full = all_genes(adata).var["moran_i"]
    share = np.asarray(adata.X.sum(axis=0)).ravel() / adata.X.sum()
    top = full[share < 0.02].nlargest(8).index  # rare enough to leave the depth as it is
    hidden = np.random.default_rng(1).random(adata.shape) < 0.5
    adata.layers["observed"] = ~(hidden & adata.var_names.isin(top))
    partly = all_genes(adata, observed_layer="observed").var["moran_i"]
    assert partly[top].mean() == pytest.approx(full[top].mean(), rel=0.2)


def test_all_observed_is_the_same_as_no_mask(tissue):
    adata = tissue.copy()
    adata.layers["observed"] = np.ones(adata.shape, dtype=bool)
    pd.testing.assert_frame_equal(all_genes(adata).var, all_genes(adata, observed_layer="observed").var)


def test_gene_that_does_not_vary_counts_as_zero():
    rng = np.random.default_rng(0)
    counts = np.concatenate([np.full((50, 1), 3.0), rng.poisson(2, (50, 4))], axis=1)
    counts[:, 4] = 20 - counts[:, :4].sum(axis=1)  # equal depths: the first gene is constant after scaling
    adata = ad.AnnData(counts, obsm={"spatial": rng.uniform(0, 1, (50, 2))})
    assert all_genes(adata).var["moran_i"].iloc[0] == 0


@pytest.mark.parametrize("to_format", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("masked", [False, True])
def test_spots_and_genes_without_a_count(tissue, to_format, masked):
    counts = tissue.X.toarray()
    counts[:, 4] = 0
    adata = ad.AnnData(counts, obs=tissue.obs, var=tissue.var, obsm={"spatial": np.array(tissue.obsm["spatial"])})
    adata.layers["observed"] = np.broadcast_to(np.arange(300)[:, None] != 7, adata.shape).copy()
    options = {"observed_layer": "observed" if masked else None}
    # Beside the tissue, so that they are nobody's neighbours.
    aside = adata[:40].copy()
    aside.X[:], aside.obsm["spatial"] = 0, aside.obsm["spatial"] + 1e6
    aside.obs_names = [f"empty {i}" for i in range(40)]
    both = ad.concat([adata, aside])
    both.X, adata.X = to_format(both.X), to_format(counts)
    alone = all_genes(adata, **options)
    n_empty = 39 if masked else 40  # one is not observed
    with pytest.warns(UserWarning, match=rf"no count for {n_empty} spots \('empty 0', .* left out of Moran"):
        result = all_genes(both, **options)
    assert adata.var_names[4] not in result.var_names and result.n_vars == 79
    np.testing.assert_allclose(result.var["moran_i"], alone.var["moran_i"], rtol=1e-6)
    # Depths of 0 do not enter the median of the library.
    np.testing.assert_array_equal(result.obs["total_counts"].iloc[:300], alone.obs["total_counts"])
    assert (result.obs["total_counts"].iloc[300:] == 0).sum() == n_empty


def test_genes_that_are_needed_are_kept(tissue):
    ranked = all_genes(tissue).var["moran_i"].sort_values(ascending=False)
    poor = list(ranked.index[-3:])
    assert not set(poor) & set(select_genes(tissue, n_target=10, n_context=20).var_names)
    panel = select_genes(tissue, n_target=10, n_context=20, keep=poor)
    assert panel.n_vars == 30 and panel.var.loc[poor, "target_gene"].all() and panel.var["target_gene"].sum() == 10
    # One that is hardly detected, named by its symbol.
    adata = tissue.copy()
    adata.var["symbol"] = [f"S{i}" for i in range(adata.n_vars)]
    panel = select_genes(adata, n_target=1, n_context=2, min_fraction=0.99, keep=["S3", "S4"], gene_symbols="symbol")
    assert {"S3", "S4"} <= set(panel.var.loc[panel.var["target_gene"], "symbol"])
    with pytest.raises(KeyError, match=r"keep=... names 1 genes that adata does not have: 'S3'.*gene_symbols="):
        select_genes(adata, keep=["S3", adata.var_names[0]])
    with pytest.raises(KeyError, match=r"var\['name'\] is missing.*gene_symbols="):
        select_genes(adata, keep=["S3"], gene_symbols="name")


def test_a_table_of_spatialdata_is_its_anndata():
    adata = simulated_tissue(120, 40, n_libraries=2, seed=2)
    sdata = as_spatialdata(adata)
    panel = select_genes(sdata, layer="counts", n_target=5, n_context=10)
    alone = select_genes(adata, layer="counts", n_target=5, n_context=10, library_key="library_id")
    pd.testing.assert_frame_equal(panel.var, alone.var, check_exact=False)
    np.testing.assert_allclose(panel.obsm["spatial"], adata.obsm["spatial"])
    assert "spatial" not in sdata["table"].obsm and sdata["table"].n_vars == 40
    sdata["panel"] = panel  # annotates the same shapes
    with pytest.raises(KeyError, match="positions of this table are in its SpatialData object, pass that object"):
        select_genes(sdata["table"], layer="counts")
    with pytest.raises(KeyError, match="no 'cells'.*table_key"):
        select_genes(sdata, table_key="cells")


def test_a_depth_of_the_user_is_used_and_stays(tissue):
    adata = tissue.copy()
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    expected = all_genes(adata)  # the sum of the counts may stand there
    adata.obs["total_counts"] *= np.random.default_rng(0).integers(2, 20, 300)
    before = adata.obs.copy()
    with pytest.warns(UserWarning, match=r"total_counts'. differs .* for \d+ spots.* delete it to have the sum taken"):
        kept = all_genes(adata)
    result = all_genes(adata, size_factor_key="total_counts")
    assert result.obs.equals(before) and kept.obs.equals(before)
    pd.testing.assert_frame_equal(kept.var, result.var)
    adata.layers["observed"] = np.random.default_rng(0).random(adata.shape) < 0.9
    with pytest.raises(ValueError, match="would be replaced.*pass size_factor_key='total_counts'; else delete it"):
        select_genes(adata, observed_layer="observed")
    assert not np.allclose(result.var["moran_i"], expected.var["moran_i"])
    counts = adata.X.toarray() / adata.obs["total_counts"].to_numpy()[:, None] * 1e4
    again = ad.AnnData(np.log1p(counts), var=adata.var[[]])
    again.obsp["spatial_connectivities"], _ = spatial_graph(adata.obsm["spatial"], None, 6)
    sq = pytest.importorskip("squidpy")
    moran = sq.gr.spatial_autocorr(again, mode="moran", copy=True)["I"].reindex(adata.var_names)
    np.testing.assert_allclose(result.var["moran_i"], moran, rtol=1e-4, atol=1e-6)
    adata.obs["total_counts"] = 1
    with pytest.raises(ValueError, match="would be replaced"):
        select_genes(adata)
    with pytest.raises(ValueError, match="less than the counts of the spot"):
        select_genes(adata, size_factor_key="total_counts")


def test_fewer_genes_than_wanted_warn(tissue):
    with pytest.warns(UserWarning, match="fewer than n_target"):
        result = select_genes(tissue, n_target=5, n_context=1000)
    assert result.var["target_gene"].sum() == 5


def change(adata, **kwargs):
    for key, value in kwargs.items():
        if key == "X":
            adata.X = value(adata.X.toarray())
        else:
            adata.obsm[key] = value(adata.obsm[key].copy())
    return adata


def put(place, value):
    def assign(array):
        array[place] = value
        return array

    return assign


@pytest.mark.parametrize(
    ("changes", "kwargs", "error", "match"),
    [
        ({}, {"layer": "raw"}, KeyError, r"layers\['raw'\]"),
        ({}, {"spatial_key": "xy"}, KeyError, r"obsm\['xy'\]"),
        ({}, {"library_key": "slide"}, KeyError, r"obs\['slide'\]"),
        ({}, {"n_target": 0}, ValueError, "n_target=0"),
        ({}, {"min_fraction": 1.1}, ValueError, "lower min_fraction"),
        ({"X": put((2, 3), np.nan)}, {}, ValueError, "section_1_spot_3.*gene_4"),
        ({"X": put(slice(None), 0)}, {}, ValueError, "no gene detected"),
        ({"spatial": put((2, 1), np.nan)}, {}, ValueError, "section_1_spot_3.*correct them"),
        # What setup refuses, too.
        ({}, {"target_sum": 0}, ValueError, "target_sum=0 must be a number above 0"),
        ({}, {"target_sum": -1.0}, ValueError, "target_sum=-1"),
        ({}, {"target_sum": np.nan}, ValueError, "target_sum=nan"),
        ({}, {"n_neighbors": 0}, ValueError, "n_neighbors=0"),
        ({}, {"n_neighbors": 300}, ValueError, "300 spots, too few"),
        ({"spatial": lambda positions: positions[:, :1]}, {}, ValueError, r"positions must be \(300, 2\)"),
        ({"spatial": lambda positions: np.tile(positions[:150], (2, 1))}, {}, ValueError, "overlap. Pass library_key"),
        ({}, {"size_factor_key": "n_counts"}, KeyError, r"obs\['n_counts'\]"),
        ({}, {"size_factor_key": "domain"}, TypeError, "column of numbers"),
    ],
)
def test_bad_input(tissue, changes, kwargs, error, match):
    with pytest.raises(error, match=match):
        select_genes(change(tissue.copy(), **changes), **kwargs)


def on_disk(adata, folder, kind):
    """The same data, opened where they are written."""
    path = folder / f"tissue.{kind.split()[-1]}"
    (adata.write_zarr if kind.endswith("zarr") else adata.write_h5ad)(path)
    return ad.experimental.read_lazy(path) if kind.startswith("lazy") else ad.read_h5ad(path, backed="r")


@pytest.mark.filterwarnings("ignore:.*controls:UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["h5ad", "lazy h5ad", "lazy zarr"])
@pytest.mark.parametrize("dense", [False, True])
def test_genes_are_selected_on_disk(tissue, tmp_path, monkeypatch, kind, dense):
    whole = tissue[:, :40].copy()
    whole.var_names = ["NegControlProbe_00042", *whole.var_names[1:]]
    whole.X.data[whole.X.indptr[5] : whole.X.indptr[6]] = 0
    if dense:
        whole.X = whole.X.toarray()
    # Blocks of few spots, groups of few genes.
    monkeypatch.setattr(_on_disk, "BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(_genes, "GROUP_ENTRIES", 2000)
    options = {"n_target": 5, "n_context": 15, "library_key": "library_id", "layer": None}
    with pytest.warns(UserWarning, match="no count for 1 spot"):
        expected = select_genes(whole, **options)
    opened = on_disk(whole, tmp_path, kind)
    with pytest.warns(UserWarning, match="no count for 1 spot"):
        panel = select_genes(opened, **options)
    assert not panel.isbacked and sparse.issparse(panel.X)
    np.testing.assert_array_equal(panel.X.toarray(), expected.to_df())
    pd.testing.assert_frame_equal(panel.var, expected.var)
    pd.testing.assert_frame_equal(panel.obs, expected.obs)
    pd.testing.assert_frame_equal(panel.obsm["controls"], expected.obsm["controls"])
    np.testing.assert_array_equal(panel.obsm["spatial"], expected.obsm["spatial"])
    LGDiST.setup_anndata(panel, size_factor_key="total_counts", library_key="library_id")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_on_disk(tissue, tmp_path):
    opened = on_disk(tissue, tmp_path, "lazy zarr")
    panel = select_genes(opened, layer="counts", n_target=5, n_context=15)
    expected = select_genes(tissue, layer="counts", n_target=5, n_context=15)
    assert (panel.layers["counts"] != expected.layers["counts"]).nnz == 0 and panel.X is not panel.layers["counts"]
    with pytest.raises(ValueError, match="on disk, where no observed_layer='counts' is read"):
        select_genes(opened, layer="counts", observed_layer="counts")
    by_gene = tissue.copy()
    by_gene.X = by_gene.X.tocsc()
    (tmp_path / "other").mkdir()
    with pytest.raises(TypeError, match="adata.X is on disk and stored by gene"):
        select_genes(on_disk(by_gene, tmp_path / "other", "h5ad"))
