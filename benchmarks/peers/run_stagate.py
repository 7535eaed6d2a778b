#!/usr/bin/env python3
"""STAGATE (``stagate-modern``) on log values; its reconstruction."""

from __future__ import annotations

import anndata
import numpy as np
from contract import log_values, run
from STAGATE_pyG import Cal_Spatial_Net, train_STAGATE


def complete(adata: anndata.AnnData) -> tuple[np.ndarray, str]:
    given = log_values(adata)
    # Six neighbours, as many as the radius of its tutorials gives on a hexagonal array: a radius fits one technology only.
    Cal_Spatial_Net(given, model="KNN", k_cutoff=6)
    made = train_STAGATE(given, random_seed=int(adata.uns["seed"]), save_reconstrction=True, device="cpu")
    return made.layers["STAGATE_ReX"], "log"


if __name__ == "__main__":
    run(complete)
