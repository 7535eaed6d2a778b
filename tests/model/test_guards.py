"""A completion that should not be trusted says so."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

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
    model = small.fit(small.build(adata))
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
