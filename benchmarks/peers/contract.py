"""What the drivers of this folder share: the files that the harness hands out and takes back, and slides kept apart.

A driver is called as ``run_NAME.py INPUT.h5ad OUTPUT.h5ad``; ``harness.py`` one folder above describes the input. It completes the
panel with its package's defaults, on what the package recommends as input; entries that are known to be missing are zeros
there, as no package here can be told of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd


def apart(adata: anndata.AnnData) -> np.ndarray:
    """Coordinates with the slides side by side, for packages that would find neighbours across slides."""
    places = np.array(adata.obsm["spatial"], dtype=float)
    places[:, 0] += pd.factorize(adata.obs["slide"])[0] * 2 * np.ptp(places[:, 0])
    return places


def log_values(adata: anndata.AnnData) -> anndata.AnnData:
    """The panel as log values per 10,000 counts over all genes, with no more than names and places.

    The panel takes the place of the highly variable genes that a recipe chooses after this normalisation.
    """
    values = np.asarray(adata.layers["lognorm"], dtype=np.float32)
    names = (pd.DataFrame(index=adata.obs_names), pd.DataFrame(index=adata.var_names))
    return anndata.AnnData(values, *names, obsm={"spatial": apart(adata)})


def run(complete: Callable[[anndata.AnnData], tuple[Any, str]]) -> None:
    """Complete the file that the command line names.

    Parameters
    ----------
    complete
        From the input to the completed panel, spots by genes, and its scale: ``log`` or ``rate`` (shares of ``obs["lib"]``).
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    options = parser.parse_args()
    adata = anndata.read_h5ad(options.input)
    values, space = complete(adata)
    panel = pd.DataFrame(np.asarray(values, dtype=np.float32), adata.obs_names, adata.var_names)
    scored = panel.loc[:, adata.var["eval"].to_numpy()]
    anndata.AnnData(scored, uns={"space": space}).write_h5ad(options.output)
