#!/usr/bin/env python3
"""GraphST (``graphst-modern``) on scaled log values, as its own preprocessing makes them; its reconstruction is scaled back."""

from __future__ import annotations

import anndata
import numpy as np
from contract import log_values, run
from GraphST.GraphST import GraphST


def complete(adata: anndata.AnnData) -> tuple[np.ndarray, str]:
    given = log_values(adata)
    deviation = given.X.std(axis=0, ddof=1)
    deviation[deviation == 0] = 1
    given.X = np.minimum(given.X / deviation, 10)
    # The mark that genes have been chosen, without which it would normalise again.
    given.var["highly_variable"] = True
    made = GraphST(given, random_seed=int(adata.uns["seed"])).train().obsm["emb"]
    return np.maximum(made * deviation, 0), "log"


if __name__ == "__main__":
    run(complete)
