"""Domains: clusters of niches, their stability and the number that is suggested."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

from lgdist_scvi import tl


@pytest.fixture
def adata():
    """Two sections of 120 spots at the same places, in three bands of 5, 4 and 3 columns."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:10, :12]
    band = np.tile(np.digitize(columns.ravel(), [5, 9]), 2)
    adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(240)]))
    adata.obsm["spatial"] = np.tile(np.column_stack([columns.ravel(), rows.ravel()]).astype(float), (2, 1))
    adata.obs["section"] = np.repeat(["one", "two"], 120)
    adata.obs["band"] = pd.Categorical(band)
    centres = np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0]])
    adata.obsm["X_lgdist_niche"] = centres[band] + rng.normal(size=(240, 3)) * [0.4, 0.4, 1]
    return adata


def test_bands_are_found_and_named_by_size(adata):
    tl.domains(adata, 3, n_seeds=2)
    found = adata.obs["domain"]
    assert adjusted_rand_score(adata.obs["band"], found) > 0.95
    assert list(found.cat.categories) == ["1", "2", "3"]
    sizes = found.value_counts()
    assert sizes["1"] >= sizes["2"] >= sizes["3"]
    settings = adata.uns["domain"]
    assert settings["n_domains"] == 3
    assert 0.95 < settings["stability"] <= 1
    assert "criterion" not in settings


def test_the_number_is_suggested(adata):
    many = AnnData(obsm={"X_lgdist_niche": np.tile(adata.obsm["X_lgdist_niche"], (10, 1))})
    tl.domains(many, n_seeds=1, key_added="d")
    criterion = many.uns["d"]["criterion"]
    assert list(criterion) == [str(n) for n in range(2, 16)]
    assert many.uns["d"]["n_domains"] == int(max(criterion, key=criterion.get)) == 3
    assert np.isnan(many.uns["d"]["stability"])


@pytest.mark.parametrize(("method", "found"), [("mixture", True), ("kmeans", False)])
def test_a_mixture_finds_bands_that_k_means_cuts(adata, method, found):
    adata.obsm["X_lgdist_niche"] *= [1, 1, 20]  # a gradient over all bands
    tl.domains(adata, 3, method=method, n_seeds=1)
    assert (adjusted_rand_score(adata.obs["band"], adata.obs["domain"]) > 0.95) == found
    assert adata.uns["domain"]["method"] == method


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
def test_directions_that_are_rounding_do_not_count(adata, method):
    noise = np.random.default_rng(2).choice([-1e-7, 1e-7], size=(240, 4))  # clusters, were they scaled
    adata.obsm["X_lgdist_niche"] = np.hstack([adata.obsm["X_lgdist_niche"][:, :2], noise])
    tl.domains(adata, 3, method=method, n_seeds=1)
    assert adjusted_rand_score(adata.obs["band"], adata.obs["domain"]) > 0.95


def test_the_same_seed_gives_the_same(adata):
    for key, seed in {"a": 1, "b": 1}.items():
        tl.domains(adata, 4, n_seeds=1, seed=seed, key_added=key)
    assert adata.obs["a"].equals(adata.obs["b"])


def test_clusters_of_no_pattern_are_not_stable(adata):
    adata.obsm["noise"] = np.random.default_rng(1).normal(size=(240, 6))
    tl.domains(adata, 6, use_rep="noise", n_seeds=3)
    assert adata.uns["domain"]["stability"] < 0.6


def test_votes_are_of_the_section(adata):
    band = adata.obs["band"].cat.codes.to_numpy()
    niche = adata.obsm["X_lgdist_niche"]
    niche[120:] = niche[120:][np.random.default_rng(0).permutation(120)]  # the second section has no pattern
    for key, spots in {"single": 1, "voted": 9}.items():
        tl.domains(adata, 3, n_seeds=1, vote_spots=spots, library_key="section", key_added=key)
    single, voted = (adata.obs[key].astype(str).to_numpy() for key in ("single", "voted"))
    assert adjusted_rand_score(band[:120], voted[:120]) > 0.8
    assert (single[120:] != voted[120:]).mean() > 0.1


def test_leiden_of_a_resolution(adata):
    pytest.importorskip("igraph")
    adata.obsm["X_lgdist_niche"] = adata.obsm["X_lgdist_niche"][:, :2]
    tl.domains(adata, resolution=0.05, n_seeds=2)
    assert adata.uns["domain"]["resolution"] == 0.05
    assert adjusted_rand_score(adata.obs["band"], adata.obs["domain"]) > 0.9


def test_a_large_tissue_is_fitted_to_a_part(adata, monkeypatch):
    monkeypatch.setattr("lgdist_scvi.tl._domains.FIT_SPOTS", 100)
    tl.domains(adata, 3, n_seeds=1)
    assert adjusted_rand_score(adata.obs["band"], adata.obs["domain"]) > 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_rep": "X_pca"}, KeyError, r"adata.obsm\['X_pca'\] is missing .*add_latent_representation"),
        (
            {"n_domains": 3, "method": "k-means"},
            ValueError,
            "method='k-means' is unknown; choose one of 'mixture', 'kmeans'",
        ),
        ({"n_domains": 3, "resolution": 1.0}, ValueError, "either n_domains or resolution"),
        ({"n_domains": 0}, ValueError, "n_domains=0 must be a whole number of at least 1"),
        ({"n_domains": 241}, ValueError, "n_domains=241 is more than the 240 spots"),
        ({"n_domains": 3, "n_seeds": 0}, ValueError, "n_seeds=0"),
        ({"resolution": -1}, ValueError, "resolution=-1 must be a number above 0"),
        (
            {"n_domains": 3, "vote_spots": 5, "spatial_key": "xy"},
            KeyError,
            r"adata.obsm\['xy'\] \(positions\) is missing",
        ),
        ({"n_domains": 3, "vote_spots": 5, "library_key": "lib"}, KeyError, r"adata.obs\['lib'\] is missing"),
    ],
)
def test_errors_name_the_culprit(adata, options, error, message):
    with pytest.raises(error, match=message):
        tl.domains(adata, **options)


def test_spots_that_are_not_finite_are_named(adata):
    adata.obsm["X_lgdist_niche"][7, 1] = np.nan
    with pytest.raises(ValueError, match="not finite in 1 spots: .*s7"):
        tl.domains(adata, 3)


def test_positions_and_sections_of_the_vote_are_checked(adata):
    adata.obs["lib"] = ["a"] * (adata.n_obs - 1) + [None]
    with pytest.raises(ValueError, match=r"adata.obs\['lib'\] \(library_key\) is NaN for .*s239"):
        tl.domains(adata, 3, vote_spots=5, library_key="lib")
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    adata.obsm["spatial"][7, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite positions for .*s7"):
        tl.domains(adata, 3, vote_spots=5)
