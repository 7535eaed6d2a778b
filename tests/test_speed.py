"""The benchmark of speed: what it simulates, what it rebuilds, and what it says."""

import importlib

import numpy as np
import pytest
import torch


@pytest.fixture
def speed(benchmarks, monkeypatch):
    monkeypatch.syspath_prepend(benchmarks)
    return importlib.import_module("speed")


@pytest.fixture
def published(benchmarks, monkeypatch):
    monkeypatch.syspath_prepend(benchmarks)
    return importlib.import_module("published")


def test_simulated_spots(speed):
    adata = speed.simulated(400, 500)
    assert adata.n_obs == 400 and adata.n_vars > 480
    assert adata.X.nnz / (400 * 500) == pytest.approx(0.05, rel=0.1)
    assert (adata.X.data == np.round(adata.X.data)).all()


def test_published_configuration_has_the_published_sizes(published):
    autoencoder, denoiser = published.Autoencoder(100), published.Denoiser()
    assert len(autoencoder.layers.layers) == 4 and autoencoder.embed.out_features == 512
    assert len(denoiser.blocks) == 12 and denoiser.blocks[0].attention.num_heads == 16
    assert denoiser.noisy.out_features == 1024 and published.N_STEPS == 50
    small = published.Denoiser(n_hidden=32, n_layers=1, n_heads=4)
    calls = []
    small.register_forward_hook(lambda *_: calls.append(1))
    expression = torch.rand(3, 7, 100)
    with torch.no_grad():
        completed = published.complete(autoencoder.eval(), small.eval(), expression)
    assert completed.shape == (3, 100) and len(calls) == 50
    assert all(torch.isfinite(loss) for loss in published.training_losses(autoencoder, small, expression))


def test_page(speed):
    run = {"machine": "toaster", "threads": 1, "commit": "abc"}
    times = {"completion": [0.004, 0.002, 0.003], "published completion": [0.3, 0.6, 0.9]}
    times |= {"training step": [0.1], "published training step": [2.0]}
    flops = {"completion": 3e8, "training step": 5e9}
    runs = [
        {"n_spots": n, "setup": 1.0, "train": n / 100, "complete": n / 50, "peak_gb": 1 + n / 1e4, "before_gb": 1.0}
        for n in (1_000, 10_000, 100_000)
    ]
    domains = [
        {"n_spots": n, "given": 1.0, "suggested": 3.0, "peak_gb": 1 + n / 1e6, "before_gb": 1.0}
        for n in (3_000, 100_000)
    ]
    known = {"n_genes": 300, "molecules": 230.0, "select": 5.0, "selected_gb": 1.5, "trained_gb": 1.7}
    cells = [{**run, **known, "passes": passes} for run, passes in zip(runs[1:], (9, 4), strict=True)]
    section = {
        "lgdist": [{"seconds": 100.0, "peak_gb": 2.0, "step": 0.1}],
        "scvi": [{"seconds": s, "peak_gb": 3.0, "step": 0.02} for s in (400.0, 200.0, 300.0)],
        "magic": [],
        "spackle": [{"error": "no spared", "seconds": 1.0, "peak_gb": 0.1}],
    }
    page = speed.page(
        {
            "sampling": {**run, "times": times, "flops": flops, "flops_per_s": 2e11},
            "section": {**run, "runs": section, "shape": (10, 20)},
            "spots": {**run, "runs": runs},
            "domains": {**run, "runs": domains},
            "cells": {**run, "runs": cells},
        }
    )
    assert "| completion of a spot | 3.0 | 600 | 200 | 0.30 | 50% |" in page
    assert "| scVI | 300 | 3 | 20 | 3.0 | 3 |" in page
    assert "| MAGIC | not run |" in page and "| SpaCKLE | no spared |" in page
    assert "time grows with the power 1.00 of the number of spots, and the model's memory with the power 1.00" in page
    assert "it grows with the power 1.00 of the number of spots" in page and "| 100,000 | 1.0 | 3.0 | 0.10 |" in page
    assert "| 100,000 | 4 | 5 | 1 | 1000 | 2000 | 0.50 | 0.70 | 10.00 |" in page
    assert "Between the last two rows each of the cells costs 30.0 ms: by this slope a million take 8.3 hours" in page
    assert "18,000" not in page and speed.page({}) == speed.INTRODUCTION.strip() + "\n"
