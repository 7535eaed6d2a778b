#!/usr/bin/env python3
"""STARK (``stark-denoise``) on each spot's shares of the panel, which it takes its noise from the depth for."""

from __future__ import annotations

import anndata
import numpy as np
from contract import apart, run
from stark import stark_denoise


def complete(adata: anndata.AnnData) -> tuple[np.ndarray, str]:
    counts = adata.X.toarray().astype(float)
    depth = counts.sum(axis=1)
    shares = anndata.AnnData(counts / np.maximum(depth, 1)[:, None], obsm={"spatial": apart(adata)})
    made = stark_denoise(shares, np.maximum(depth, 1), save_to_anndata_layer=False)["denoised_matrix"]
    # Shares of the panel, like its input; asked for are shares of all genes.
    return made * (depth / adata.obs["lib"].to_numpy())[:, None], "rate"


if __name__ == "__main__":
    run(complete)
