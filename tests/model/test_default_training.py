"""One training of full length, with every default: what the brief ones of all other tests leave open."""

import numpy as np
import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.metrics import gene_pearson


@pytest.mark.slow
def test_defaults_complete_a_tissue():
    adata = simulated_tissue(300, 100, depth=400)
    LGDiST.setup_anndata(adata, layer="counts")
    model = LGDiST(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
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
