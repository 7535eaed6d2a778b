"""Checks that a model saved on one Python stack completes alike on another.

python3.11 benchmarks/cross_stack.py save DIR
python3.12 benchmarks/cross_stack.py load DIR
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import scvi
import torch

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

SETUP = {"layer": "counts", "library_key": "library_id", "image_key": "X_image", "observed_layer": "observed"}
SIZE = {"n_latent": 8, "n_hidden": 32, "n_heads": 2, "n_denoiser_hidden": 32}
READ = {"n_samples": 2, "return_std": True, "return_numpy": True, "silent": True}


def save(folder: Path) -> None:
    adata = simulated_tissue(n_spots=200, n_genes=50, n_libraries=2)
    adata.layers["observed"] = np.random.default_rng(0).random(adata.shape) < 0.9
    LGDiST.setup_anndata(adata, **SETUP)
    model = LGDiST(adata, **SIZE)
    model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    model.add_completed_layer(silent=True)
    values, std = model.get_completed_expression(**READ)
    np.savez(folder / "expected.npz", values=values, std=std, latent=model.get_latent_representation(silent=True))
    adata.write_h5ad(folder / "completed.h5ad")
    model.save(folder / "model", overwrite=True)


def load(folder: Path) -> None:
    adata = ad.read_h5ad(folder / "completed.h5ad")
    model = LGDiST.load(folder / "model", adata=adata)
    expected = np.load(folder / "expected.npz")
    values, std = model.get_completed_expression(**READ)
    found = {"values": values, "std": std, "latent": model.get_latent_representation(silent=True)}
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
        print(f"{name}: largest difference {np.abs(array - expected[name]).max():.1e}")
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["save", "load"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    {"save": save, "load": load}[arguments.action](arguments.folder)
    print(f"{arguments.action} with scvi-tools {scvi.__version__}, anndata {ad.__version__}, torch {torch.__version__}")
