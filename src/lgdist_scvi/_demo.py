"""The demonstration: complete a tissue whose true expression is known."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._constants import TARGET_SUM
from ._output import UserError, check_target, say_to_stdout, write_aside

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

# Gives four zeros in five entries, as in a gene panel of a real section.
DEPTH = 400
RESOLUTION = 0.5


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    accelerator: str = "auto",
    n_spots: int = 600,
    n_genes: int = 300,
    max_epochs: int | None = None,
) -> AnnData:
    """Simulate a tissue, complete it, print scores, and write a file and a figure.

    Parameters
    ----------
    folder
        Folder for ``completed.h5ad`` and ``completion.png``; created if missing.
    seed
        Seed of tissue and model.
    accelerator
        Accelerator to train on.
    n_spots, n_genes
        Size of the tissue.
    max_epochs
        Epochs of each training phase; by default those of the model.

    Returns
    -------
    The completed tissue, as written.

    Raises
    ------
    UserError
        If the folder is not writable or igraph is missing.
    """
    from . import datasets
    from .model import LGDiST

    if importlib.util.find_spec("igraph") is None:
        raise UserError("the demonstration clusters with igraph; install it: pip install igraph")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be created ({error.strerror}).") from error
    table, picture = folder / "completed.h5ad", folder / "completion.png"
    for path in (table, picture):
        check_target(path, overwrite=True)

    adata = datasets.simulated_tissue(n_spots, n_genes, depth=DEPTH, seed=seed)
    counts = adata.layers["counts"]
    zeros = 1 - counts.nnz / np.prod(adata.shape)
    say_to_stdout(
        f"Simulated tissue: {n_spots} spots, {n_genes} genes, {zeros:.0%} zeros. Training takes one or two minutes."
    )
    LGDiST.setup_anndata(adata, layer="counts")
    model = LGDiST(adata, seed=seed)
    with redirect_stdout(sys.stderr):
        model.train(max_epochs, accelerator=accelerator, devices=1, enable_progress_bar=sys.stderr.isatty())
    model.add_completed_layer(silent=True)
    adata.obsm["X_lgdist"] = model.get_latent_representation(silent=True)
    depth = np.asarray(counts.sum(axis=1))
    adata.layers["measured"] = counts.multiply(TARGET_SUM / depth).tocsr().log1p().astype(np.float32)

    scores = model.evaluate_completion(silent=True)
    adata.uns["scores"] = scores
    say_to_stdout(f"\nScores on entries held out of training:\n{scores.round(3).to_string()}")
    truth = compare_with_truth(adata, seed)
    adata.uns["truth"] = truth
    say_to_stdout(f"\nComparison with the simulated truth:\n{truth.round(3).to_string()}")

    write_aside(adata, table, overwrite=True)
    genes = draw_maps(adata, picture)
    say_to_stdout(f"\nWritten: {table}\n         {picture} ({', '.join(genes)})")
    return adata


def compare_with_truth(adata: AnnData, seed: int) -> pd.DataFrame:
    """Correlate measured and completed expression with the true rate, and compare their clusters with the domains.

    Parameters
    ----------
    adata
        The tissue, with layers "measured", "lgdist" and "rate"; clusters are written to ``obs``.
    seed
        Seed of the clustering.

    Returns
    -------
    Table with a row for "measured" and "completed" and the columns ``pcc_gene`` (correlation over spots with the true
    log expression, mean over genes), ``n_clusters`` and ``ari_domains`` (adjusted Rand index of clusters and domains).
    """
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    from .metrics import gene_pearson

    true = np.log1p(adata.layers["rate"] * TARGET_SUM)
    rows = {}
    for name, layer in {"measured": "measured", "completed": "lgdist"}.items():
        values = adata.layers[layer]
        values = values if isinstance(values, np.ndarray) else values.toarray()
        cells = sc.AnnData(values, obs=adata.obs[[]].copy())
        sc.pp.pca(cells, n_comps=min(20, min(cells.shape) - 1), random_state=seed)
        sc.pp.neighbors(cells, random_state=seed)
        sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, resolution=RESOLUTION, random_state=seed)
        adata.obs[f"leiden_{name}"] = clusters = cells.obs["leiden"]
        rows[name] = {
            "pcc_gene": float(np.nanmean(gene_pearson(values, true))),
            "n_clusters": clusters.nunique(),
            "ari_domains": adjusted_rand_score(adata.obs["domain"], clusters),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def draw_maps(adata: AnnData, path: Path) -> list[str]:
    """Draw measured and completed maps of one marker gene of each of four domains.

    Parameters
    ----------
    adata
        The completed tissue.
    path
        Figure to write.

    Returns
    -------
    The genes drawn: of each domain, the marker whose share of spots with a count is closest to one third.
    """
    from matplotlib.figure import Figure

    from .pl import completion

    detected = pd.Series(np.asarray((adata.layers["counts"] > 0).mean(axis=0)).ravel(), index=adata.var_names)
    domains = adata.var["marker_of"].cat.categories[1:5]
    genes = [(detected[adata.var["marker_of"] == domain] - 1 / 3).abs().idxmin() for domain in domains]
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    axes = figure.subplots(2, 4)
    completion(adata, genes, measured_layer="counts", axes=axes)
    figure.savefig(path, dpi=110)
    return genes
