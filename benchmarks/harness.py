#!/usr/bin/env python3
"""Complete one file of the comparison of methods with LGDiST and its defaults.

    harness.py INPUT.h5ad OUTPUT.h5ad

INPUT.h5ad holds the training counts of a panel of genes in X; ``layers["missing"]`` (1 where an entry is known to be
missing), ``var["eval"]`` (genes that are scored), ``obs["lib"]`` (depth over all genes), ``obs["slide"]``,
``obsm["spatial"]``, ``uns["protocol"]`` and ``uns["seed"]``. OUTPUT.h5ad gets the completed matrix of the scored genes
in X: under protocol A log values of what would be detected, else rates as shares of ``obs["lib"]``.
"""

from __future__ import annotations

import argparse
import os
import time

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from lgdist_scvi import LGDiST


def complete(adata: anndata.AnnData, model_cls: type[LGDiST] = LGDiST) -> tuple[pd.DataFrame, str]:
    """Train a model on the counts, and return the table that the protocol scores and the name of its scale."""
    missing = adata.layers["missing"]
    missing = (missing.toarray() if sparse.issparse(missing) else np.asarray(missing)) > 0
    if missing.any():
        adata.layers["observed"] = ~missing
    model_cls.setup_anndata(
        adata,
        library_key="slide" if adata.obs["slide"].nunique() > 1 else None,
        observed_layer="observed" if missing.any() else None,
        size_factor_key="lib",
        target_genes_key="eval",
    )
    model = model_cls(adata, seed=int(adata.uns["seed"]))
    start = time.perf_counter()
    model.train(enable_progress_bar=False)
    epochs = {phase: len(losses["train_loss"]) for phase, losses in model.history.items()}
    print(f"training took {time.perf_counter() - start:.0f} s, epochs: {epochs}", flush=True)

    genes = list(adata.var_names[adata.var["eval"]])
    if adata.uns["protocol"] == "A":
        return model.get_completed_expression(gene_list=genes, read_out="detected", silent=True), "log"
    return model.get_completed_expression(gene_list=genes, scale="rate", silent=True), "rate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    completed, scale = complete(anndata.read_h5ad(options.input))
    anndata.AnnData(completed, uns={"space": scale}).write_h5ad(options.output)


if __name__ == "__main__":
    main()
