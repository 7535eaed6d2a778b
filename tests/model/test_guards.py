"""A completion that should not be trusted says so."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy import sparse

from lgdist_scvi import LGDiST
from lgdist_scvi.model._guards import warn_if_collapsed, warn_if_no_better_than_means


@pytest.fixture(scope="module")
def model(small):
    return small.fit(small.build(small.tissue(), library_key="library_id"), max_epochs=5)


def test_section_of_another_tissue(model, small):
    alike, other = (model.adata[::2].copy() for _ in range(2))
    counts = other.layers["counts"].toarray()
    genes = np.argsort(counts.sum(axis=0))
    swapped = counts.copy()
    swapped[:, genes] = counts[:, genes[::-1]]
    other.layers["counts"] = sparse.csr_matrix(swapped)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.get_completed_expression(alike, **small.READ)
    with pytest.warns(UserWarning, match=r"other proportions .*log shares -\d.*evaluate_completion"):
        model.get_completed_expression(other, **small.READ)


def test_no_better_than_means():
    scores = pd.DataFrame({"d2": [0.1, 0.0, 0.2]}, index=["lgdist", "gene mean", "spatial neighbours"])
    with pytest.warns(UserWarning, match=r"no better \(d2 = 0.100\) than by the spatial neighbours \(0.200\)"):
        warn_if_no_better_than_means(scores)
    scores.loc["lgdist"] = 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_no_better_than_means(scores)


def test_noise_cannot_be_completed(small):
    adata = small.tissue()
    rng = np.random.default_rng(0)
    adata.layers["counts"] = sparse.csr_matrix(rng.poisson(np.full(adata.shape, 0.3)).astype(float))
    # With as many factors as this, the field fits the noise.
    model = small.fit(small.build(adata, {"n_factors": 20}))
    model.module.decoder.linear.weight.data.normal_(std=0.5)
    with pytest.warns(UserWarning, match="no better .*do not base claims"):
        model.evaluate_completion(**small.READ)


def test_collapsed_codes(small, monkeypatch):
    codes = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_collapsed(codes)
    with pytest.warns(UserWarning, match="nearly the same code"):
        warn_if_collapsed(0.001 * codes + 5)
    model = small.build(small.tissue())
    model.train_autoencoder(**small.TRAIN)
    model.module.encoder.code.weight.data.zero_()
    with pytest.warns(UserWarning, match="nearly the same code"):
        model.train_diffusion(**{name: value for name, value in small.TRAIN.items() if name != "validation_size"})


def test_scores_on_spots_of_the_training(small, trained):
    """A copy of the data is evaluated on what was held out; another selection of it has been seen."""
    expected = trained.evaluate_completion(**small.READ)
    assert trained.evaluate_completion(trained.adata.copy(), **small.READ).equals(expected)
    some = trained.adata[::2].copy()
    with pytest.warns(UserWarning, match="trained on some of these spots .* too good"):
        trained.evaluate_completion(some, **small.READ)


@pytest.mark.parametrize("n_genes", [10, 40])
def test_scores_on_spots_of_the_training_with_other_entries_hidden(small, n_genes, tmp_path):
    """Also where hardly a gene is detected per spot."""
    adata = small.tissue(n_genes=n_genes, depth=40)
    adata.layers["one"], adata.layers["two"] = (np.random.default_rng(i).random(adata.shape) > 0.3 for i in range(2))
    model = small.build(adata, observed_layer="one")
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model")
    other = adata.copy()
    other.layers["one"] = adata.layers["two"]
    for each in (model, LGDiST.load(tmp_path / "model", adata=adata)):
        for spots in (other, other[::3].copy(), adata[::2].copy()):
            with pytest.warns(UserWarning, match="trained on some of these spots .* too good"):
                each.evaluate_completion(spots, **(small.READ | {"n_samples": 0}))
    adata.layers["one"] = adata.layers["two"]
    with pytest.raises(ValueError, match="changed since training"):
        model.evaluate_completion(**(small.READ | {"n_samples": 0}))
    with pytest.raises(ValueError, match="entries held out of the training would be mixed up"):
        model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)


@pytest.mark.parametrize("depth", [10, 40, 1500])
@pytest.mark.parametrize("n_genes", [10, 40])
def test_other_spots_of_the_same_names_are_no_spots_of_the_training(small, n_genes, depth):
    adata, other = (small.tissue(n_genes=n_genes, depth=depth, seed=seed) for seed in (0, 1))
    assert adata.obs_names.equals(other.obs_names)
    model = small.build(adata)
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The model was trained on some")
        model.evaluate_completion(other, **(small.READ | {"n_samples": 0}))


def test_data_that_changed_since_the_training(small, tmp_path):
    model = small.fit(small.build(small.tissue()))
    model.save(tmp_path / "model")
    sc.pp.filter_cells(model.adata, min_counts=1500)
    assert model.get_completed_expression(**small.READ).shape == model.adata.shape
    with pytest.raises(ValueError, match="changed since training.*Evaluate before you change or filter it"):
        model.evaluate_completion(**small.READ)
    with pytest.raises(ValueError, match="entries held out of the training would be mixed up"):
        small.fit(model)
    # Other spots are held out anew, and the model learns from them.
    again = LGDiST.load(tmp_path / "model", adata=small.tissue(seed=5))
    small.fit(again)
    assert np.isfinite(again.evaluate_completion(**small.READ).to_numpy()).all()


def test_counts_that_were_normalised_since(small):
    adata = small.tissue()
    adata.X = adata.layers["counts"].copy()
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata, **small.OPTIONS)
    sc.pp.normalize_total(adata)
    with pytest.raises(ValueError, match="X has .* not whole numbers"):
        small.fit(model)
    adata.X = adata.layers["counts"].copy()
    small.fit(model)
    sc.pp.log1p(adata)
    for read in (model.get_completed_expression, model.get_latent_representation, model.evaluate_completion):
        with pytest.raises(ValueError, match="X has .* not whole numbers"):
            read()


def test_genes_that_were_dropped_since(small):
    adata = small.tissue()
    model = small.fit(small.build(adata), max_epochs=1)
    adata._inplace_subset_var(np.arange(35))
    with pytest.raises(ValueError, match="lacks 5 of the model's 40 genes"):
        model.get_completed_expression(**small.READ)


def test_names_of_new_sections_must_go_with_the_known_ones(model, small):
    other = small.tissue(n_spots=60, seed=1)
    other.obs["library_id"] = 3
    with pytest.raises(
        TypeError, match=r"\(library_key\) .* cannot be sorted: str \('section_1'\), int \(3\)\. .*map\(str\)"
    ):
        model.get_completed_expression(other, **small.READ)
    other.obs["library_id"] = other.obs["library_id"].map(str)
    assert model.get_completed_expression(other, **small.READ).shape == other.shape


def test_completion_that_is_not_finite(small):
    model = small.fit(small.build(small.tissue()), max_epochs=1)
    with torch.no_grad():
        model.module.decoder.out.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="spots 0 to 149 is not finite"):
        model.get_completed_expression(**small.READ)
