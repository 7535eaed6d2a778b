"""Small tissues and models for the tests of the model, independent of the defaults."""

from types import SimpleNamespace

import numpy as np
import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

OPTIONS = {
    "n_latent": 8,
    "n_hidden": 32,
    "n_layers": 1,
    "n_heads": 2,
    "n_denoiser_hidden": 32,
    "n_denoiser_layers": 1,
    "n_diffusion_steps": 100,
    # Of forty genes the default would be half as many.
    "n_factors": 4,
}
TRAIN = {
    "max_epochs": 2,
    "batch_size": 64,
    "validation_size": 0.1,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}
READ = {"n_samples": 2, "n_steps": 2, "silent": True}


def tissue(**options):
    return simulated_tissue(**({"n_spots": 150, "n_genes": 40, "depth": 1500} | options))


def hide(adata, seed=0, share=0.15):
    """Mark some entries as unobserved."""
    observed = np.random.default_rng(seed).random(adata.shape) >= share
    adata.layers["observed"] = observed
    return adata


def build(adata, options=None, **setup):
    LGDiST.setup_anndata(adata, **({"layer": "counts"} | setup))
    return LGDiST(adata, **(OPTIONS | (options or {})))


def fit(model, **options):
    model.train(**(TRAIN | options))
    return model


@pytest.fixture(scope="session")
def small():
    """Functions that make, build and fit small things, and the options they use."""
    return SimpleNamespace(tissue=tissue, hide=hide, build=build, fit=fit, OPTIONS=OPTIONS, TRAIN=TRAIN, READ=READ)


@pytest.fixture(scope="module")
def trained():
    """A trained model of two libraries with unobserved entries and image features; not to be changed."""
    adata = hide(tissue(n_libraries=2))
    return fit(build(adata, library_key="library_id", image_key="X_image", observed_layer="observed"))
