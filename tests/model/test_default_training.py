"""One training of full length, with every default: what the brief ones of all other tests leave open."""

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.metrics import gene_pearson

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    adata, random = simulated_tissue(300, 100, depth=400), np.random.default_rng(0)
    # Without more variation than that of the rates.
    rate, depth = np.asarray(adata.layers["rate"], dtype=float), random.gamma(4, 100, (300, 1)) + 50
    adata.layers["counts"] = sparse.csr_matrix(random.poisson(rate * depth).astype(np.float32))
    LGDiST.setup_anndata(adata, layer="counts")
    model = LGDiST(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def test_defaults_complete_a_tissue(model):
    adata = model.adata
    assert list(model.history) == ["autoencoder"]
    # 180 steps, two in an epoch, unless it stops early.
    losses = model.history["autoencoder"]["validation_loss"].to_numpy(dtype=float).ravel()
    assert 22 < len(model.history["autoencoder"]["train_loss"]) <= 92
    assert np.nanmin(losses) < losses[np.isfinite(losses)][0]
    scores = model.evaluate_completion(silent=True)
    assert scores.loc["lgdist", "d2"] > scores.loc["spatial neighbours", "d2"] + 0.05
    assert scores.loc["lgdist", "pcc_gene"] > scores.loc["spatial neighbours", "pcc_gene"] + 0.1
    counts, truth = adata.layers["counts"].toarray(), np.log1p(np.asarray(adata.layers["rate"]) * 1e4)
    completed = {
        "measured": np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4),
        "completed": model.get_completed_expression(silent=True, return_numpy=True),
        "kept": model.get_completed_expression(keep_observed=True, silent=True, return_numpy=True),
    }
    correlation = {name: np.nanmean(gene_pearson(values, truth)) for name, values in completed.items()}
    assert correlation["kept"] > correlation["measured"] + 0.05, correlation
    assert correlation["completed"] > correlation["measured"] + 0.15, correlation
    # Totals are those of the counts, and too high where detected entries keep their chance excess.
    options = {"scale": "counts", "silent": True, "return_numpy": True}
    rare = (counts.mean(axis=0) < 1) & (counts.sum(axis=0) >= 100)
    total, kept = (
        model.get_completed_expression(keep_observed=keep, **options)[:, rare].sum() / counts[:, rare].sum()
        for keep in (False, True)
    )
    assert 0.95 < total < 1.05 < kept - 0.05, (total, kept)


def test_correlation_is_that_of_the_true_rates(model):
    adata = model.adata
    counts, rate = adata.layers["counts"].toarray(), np.asarray(adata.layers["rate"], dtype=float)
    genes = counts.mean(axis=0) >= 3
    shares, pairs = counts[:, genes] / counts.sum(axis=1, keepdims=True), np.triu_indices(genes.sum(), 1)
    truth = np.corrcoef(rate[:, genes].T)[pairs]
    estimate, std = model.get_gene_correlation(gene_list=adata.var_names[genes], return_std=True, silent=True)
    found, measured = estimate.to_numpy()[pairs], np.corrcoef(shares.T)[pairs]
    error, error_of_counts = (np.sqrt(np.square(values - truth).mean()) for values in (found, measured))
    assert error < 0.6 * error_of_counts
    assert 0.85 < (found * truth).sum() / np.square(truth).sum() < 1.1
    assert 0.5 * error < np.sqrt(np.square(std.to_numpy()[pairs]).mean()) < 2 * error
