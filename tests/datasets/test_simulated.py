"""The simulated tissue is realistic, reproducible and can be used by scanpy and squidpy."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi.data._neighbors import spatial_graph
from lgdist_scvi.data._validation import validate_setup
from lgdist_scvi.datasets import simulated_tissue


@pytest.fixture(scope="module")
def tissue():
    return simulated_tissue()


def test_contents(tissue):
    assert tissue.shape == (1000, 400)
    assert sparse.isspmatrix_csr(tissue.X)
    assert tissue.X.dtype == np.float32
    assert (tissue.X != tissue.layers["counts"]).nnz == 0
    assert tissue.X is not tissue.layers["counts"]
    assert (tissue.X.data == np.round(tissue.X.data)).all()
    assert tissue.X.data.min() >= 1
    assert tissue.layers["rate"].dtype == np.float32
    np.testing.assert_allclose(tissue.layers["rate"].sum(axis=1), 1, rtol=1e-5)
    assert tissue.layers["rate"].min() > 0
    assert tissue.obs["domain"].dtype == "category"
    assert tissue.obs["library_id"].dtype == "category"
    assert tissue.obsm["spatial"].shape == (1000, 2)
    assert tissue.obsm["X_image"].shape == (1000, 8)
    assert tissue.obs_names.is_unique
    assert tissue.var_names.is_unique


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_are_realistic(seed):
    adata = simulated_tissue(seed=seed)
    assert 0.6 < 1 - adata.X.nnz / np.prod(adata.shape) < 0.85
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    assert np.median(depth) == pytest.approx(3000, rel=0.1)
    assert 0.25 < np.log(depth).std() < 0.7
    share = np.asarray(adata.X.sum(axis=0)).ravel() / adata.X.sum()
    assert share.max() < 0.3


def test_counts_follow_the_rate_with_overdispersion(tissue):
    depth = np.asarray(tissue.X.sum(axis=1))
    expected = tissue.layers["rate"].astype(np.float64) * depth
    counts = tissue.X.toarray()
    np.testing.assert_allclose(
        counts.sum(axis=0)[expected.sum(axis=0) > 1000], expected.sum(axis=0)[expected.sum(axis=0) > 1000], rtol=0.1
    )
    middle = (expected > 2) & (expected < 10)
    ratio = (((counts - expected) ** 2)[middle] / expected[middle]).mean()
    assert 1.5 < ratio < 4


def test_markers_are_high_in_their_domain(tissue):
    rate = tissue.to_df("rate")
    for name in tissue.obs["domain"].cat.categories:
        markers = tissue.var_names[tissue.var["marker_of"] == name]
        assert len(markers) > 5
        inside = rate.loc[tissue.obs["domain"] == name, markers].mean()
        assert np.median(inside / rate.loc[tissue.obs["domain"] != name, markers].mean()) > 3
    assert (tissue.var["marker_of"] == "none").any()


def test_image_tells_of_the_domain_but_not_all(tissue):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    accuracy = cross_val_score(LogisticRegression(max_iter=500), tissue.obsm["X_image"], tissue.obs["domain"]).mean()
    assert 0.5 < accuracy < 0.95


def test_spots_form_a_hexagonal_lattice(tissue):
    connectivities, distances = spatial_graph(tissue.obsm["spatial"], None, 6)
    degree = np.asarray(connectivities.sum(axis=1)).ravel()
    assert (degree == 6).mean() > 0.8
    assert degree.min() >= 2
    np.testing.assert_allclose(distances.data, distances.data[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("n_spots", "n_genes", "n_libraries", "depth"),
    [(60, 30, 1, 3000), (100, 50, 3, 200), (500, 1000, 2, 50), (100, 20, 1, 2)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_spot_or_gene_is_empty(n_spots, n_genes, n_libraries, depth, seed):
    adata = simulated_tissue(n_spots, n_genes, n_libraries, depth, seed)
    assert adata.shape == (n_spots, n_genes)
    assert adata.X.sum(axis=0).min() > 0
    assert adata.X.sum(axis=1).min() > 0
    sizes = adata.obs["library_id"].value_counts()
    assert len(sizes) == n_libraries
    assert sizes.max() - sizes.min() <= 1


def test_seed_decides():
    state = np.random.get_state()[1].copy()
    first, again, other = (simulated_tissue(100, 40, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert (first.X != again.X).nnz == 0
    np.testing.assert_array_equal(first.layers["rate"], again.layers["rate"])
    np.testing.assert_array_equal(first.obsm["X_image"], again.obsm["X_image"])
    np.testing.assert_array_equal(
        first.uns["spatial"]["section_1"]["images"]["hires"], again.uns["spatial"]["section_1"]["images"]["hires"]
    )
    assert (first.X != other.X).nnz > 0


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_spots": 15, "n_libraries": 2}, "n_spots=15"),
        ({"n_libraries": 0}, "n_libraries=0"),
        ({"n_genes": 5}, "n_genes=5"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        simulated_tissue(**kwargs)


def test_sections_overlay_and_pass_validation():
    adata = simulated_tissue(400, 60, n_libraries=2)
    kwargs = dict.fromkeys(
        ["layer", "library_key", "batch_key", "image_key", "observed_layer", "size_factor_key", "target_genes_key"]
    )
    kwargs |= {"spatial_key": "spatial", "n_neighbors": 6, "image_key": "X_image"}
    with pytest.raises(ValueError, match="library_key='library_id'"):
        validate_setup(adata, **kwargs)
    validate_setup(adata, **(kwargs | {"library_key": "library_id"}))


def test_h5ad_round_trip(tissue, tmp_path):
    tissue.write_h5ad(tmp_path / "tissue.h5ad")
    loaded = ad.read_h5ad(tmp_path / "tissue.h5ad")
    assert (loaded.X != tissue.X).nnz == 0
    picture = loaded.uns["spatial"]["section_1"]
    assert picture["images"]["hires"].dtype == np.uint8


def test_squidpy_can_plot_it(tissue, tmp_path):
    sq = pytest.importorskip("squidpy")
    plt = pytest.importorskip("matplotlib.pyplot")
    sq.pl.spatial_scatter(tissue, color=["domain", "gene_1"])
    plt.savefig(tmp_path / "tissue.png")
    plt.close("all")
