#!/usr/bin/env python3
"""Draw the picture of the landing page: a section of human cortex, measured and completed (`make picture`)."""

from io import BytesIO
from pathlib import Path

import numpy as np
import scanpy as sc
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from lgdist_scvi import LGDiST, pl, pp
from lgdist_scvi.datasets import example_tissue

GENES = ("MOBP", "PCP4", "HPCAL1", "KRT17")  # white matter, layer 5, layer 2, layer 6
COLORS = ("#0072b2", "#e69f00", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#000000", "#f0e442", "#999999", "#882255")


def clusters(values: np.ndarray) -> np.ndarray:
    """Leiden clusters of spots."""
    spots = sc.AnnData(values)
    sc.pp.pca(spots, n_comps=30)
    sc.pp.neighbors(spots)
    sc.tl.leiden(spots, resolution=0.5, flavor="igraph", n_iterations=2, directed=False)
    return spots.obs["leiden"].cat.codes.to_numpy()


def recoloured(found: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Clusters numbered as those shown already with which they overlap most."""
    overlap = contingency_matrix(found, shown)
    rows, columns = linear_sum_assignment(-overlap)
    numbers = dict(zip(rows, columns, strict=True))
    spare = iter(range(overlap.shape[1], len(COLORS)))
    return np.array([numbers[i] if i in numbers else numbers.setdefault(i, next(spare)) for i in found])


def main() -> None:
    """Train, complete and draw."""
    adata = example_tissue("cortex")
    panel = pp.select_genes(adata, layer="counts")
    keep = adata.var_names.isin([*panel.var_names, *GENES])
    adata.obs["total_counts"] = np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    adata = adata[:, keep].copy()
    LGDiST.setup_anndata(adata, layer="counts", size_factor_key="total_counts")
    model = LGDiST(adata)
    model.train(enable_progress_bar=False)
    adata.layers["lgdist"] = model.get_completed_expression(return_numpy=True, silent=True)
    measured = np.log1p(adata.layers["counts"].toarray() / adata.obs["total_counts"].to_numpy()[:, None] * 1e4)

    figure = Figure(figsize=(15, 5.6), layout="constrained")
    axes = figure.subplots(2, len(GENES) + 1)
    pairs = axes[:, : len(GENES)].T
    pl.completion(adata, list(GENES), measured_layer="counts", size_factor_key="total_counts", img=False, axes=pairs)
    positions = adata.obsm["spatial"]
    found = {"measured": clusters(measured), "completed": clusters(adata.layers["lgdist"])}
    found["completed"] = recoloured(found["completed"], found["measured"])
    for ax, (name, numbers) in zip(axes[:, -1], found.items(), strict=True):
        ax.scatter(*positions.T, c=[COLORS[i] for i in numbers], s=5.5, linewidths=0)
        ax.set(xticks=[], yticks=[], aspect="equal", title=f"clusters, {name}")
        ax.invert_yaxis()
        ax.spines[:].set_visible(False)
        if "layer" in adata.obs:
            there = adata.obs["layer"].notna().to_numpy()
            print(name, adjusted_rand_score(adata.obs["layer"][there].astype(str), numbers[there]))
    figure.savefig(page := BytesIO(), dpi=80)
    Image.open(page).convert("RGB").quantize(128).save(Path(__file__).with_name("picture.png"), optimize=True)


if __name__ == "__main__":
    main()
