"""What the predictors are trained to predict: log values of the target genes, as measured or with zeros completed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
from imaged import LIBRARY
from numpy.typing import NDArray
from scipy import sparse

from lgdist_scvi import LGDiST, pp
from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.data._hops import hop_weights
from lgdist_scvi.data._neighbors import spatial_graph

from .sections import N_NEIGHBORS, Floats

N_TARGET, N_CONTEXT = 128, 896
N_HOPS = 4
# What is asked of LGDiST, beside its defaults.
READ_OUTS: dict[str, dict[str, str | bool]] = {
    "expected": {},
    "kept": {"keep_observed": True},
    "detected": {"read_out": "detected", "keep_observed": True},
}
SIMPLE = ("raw", "detected", "median", "smoothed")
# Image registered or not, and read-out.
COMPLETED = {
    "lgdist": (False, "expected"),
    "lgdist_kept": (False, "kept"),
    "lgdist_detected": (False, "detected"),
    "lgdist_image": (True, "expected"),
    "lgdist_image_kept": (True, "kept"),
    "lgdist_image_detected": (True, "detected"),
}
TARGETS = (*SIMPLE, *COMPLETED)

Completion = Callable[[anndata.AnnData, int, bool], dict[str, Floats]]


def chosen_genes(training: anndata.AnnData) -> anndata.AnnData:
    """Target and context genes, by the training sections alone."""
    n_context = min(N_CONTEXT, training.n_vars - N_TARGET)
    return pp.select_genes(training, n_target=N_TARGET, n_context=n_context, library_key=LIBRARY)


def measured(adata: anndata.AnnData, genes: list[str]) -> Floats:
    """Counts of some genes."""
    return adata[:, genes].X.toarray().astype(np.float64)


def log_values(counts: Floats, depth: Floats) -> Floats:
    """log1p of counts per 10,000."""
    return np.log1p(counts / depth[:, None] * TARGET_SUM)


def target_genes(panel: anndata.AnnData) -> list[str]:
    return list(panel.var_names[panel.var["target_gene"]])


def target(name: str, panel: anndata.AnnData, seed: int, complete: Completion) -> tuple[Floats, NDArray[np.bool_]]:
    """Log values of the target genes of the training spots, and which of them the loss may see."""
    counts = measured(panel, target_genes(panel))
    values = log_values(counts, panel.obs["total_counts"].to_numpy())
    everything = np.ones(values.shape, dtype=bool)
    if name in COMPLETED:
        image, read_out = COMPLETED[name]
        return complete(panel, seed, image)[read_out], everything
    if name == "detected":
        return np.where(counts > 0, values, np.nan), counts > 0
    graph = spatial_graph(panel.obsm["spatial"], panel.obs[LIBRARY].to_numpy(), N_NEIGHBORS)[0]
    filled = {"raw": lambda values, _: values, "median": adaptive_median, "smoothed": smooth}[name]
    return filled(values, graph), everything


def adaptive_median(values: Floats, graph: sparse.csr_matrix) -> Floats:
    """Zeros filled with the median of the spot and what lies within one hop, two, up to four, the first that is not 0.

    What is still 0 takes the median of the gene's values above 0; a gene without any stays 0.
    """
    filled, left = values.copy(), values == 0
    for window in hop_weights(graph, range(1, N_HOPS + 1)):
        window = (window + sparse.identity(len(values), format="csr")).tocsr()
        for spot in np.flatnonzero(left.any(axis=1)):
            median = np.median(values[window[spot].indices], axis=0)
            fill = left[spot] & (median > 0)
            filled[spot, fill], left[spot, fill] = median[fill], False
    typical = np.array([np.median(gene[gene > 0]) if (gene > 0).any() else 0.0 for gene in values.T])
    return np.where(left, typical, filled)


def smooth(values: Floats, graph: sparse.csr_matrix) -> Floats:
    """Mean over the spot and its nearest spots."""
    around = graph + sparse.identity(len(values), format="csr")
    return (around @ values) / np.asarray(around.sum(axis=1))


def complete(panel: anndata.AnnData, seed: int, image: bool) -> dict[str, Floats]:
    """All read-outs of LGDiST with its defaults, trained on the training sections."""
    panel = panel.copy()  # registering writes to it
    LGDiST.setup_anndata(
        panel,
        library_key=LIBRARY,
        size_factor_key="total_counts",
        target_genes_key="target_gene",
        image_key="X_image" if image else None,
    )
    model = LGDiST(panel, seed=seed)
    model.train(enable_progress_bar=False)
    options = {"gene_list": target_genes(panel), "return_numpy": True, "silent": True}
    return {name: model.get_completed_expression(**options, **what) for name, what in READ_OUTS.items()}


class Kept:
    """Completions by the model of one version, kept in a folder: all read-outs, and a stopped run, take one training."""

    def __init__(self, folder: Path, version: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.version = folder, version

    def __call__(self, panel: anndata.AnnData, seed: int, image: bool) -> dict[str, Floats]:
        """Complete, unless the same was completed before."""
        path = self.folder / f"{self._digest(panel, image)}_{'image_' if image else ''}seed{seed}.npz"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, **complete(panel, seed, image))
            partial.replace(path)
        with np.load(path) as kept:
            return {name: kept[name] for name in READ_OUTS}

    def _digest(self, panel: anndata.AnnData, image: bool) -> str:
        """Of all that the model gets."""
        digest = hashlib.sha256(f"{self.version} {inspect.getsource(complete)} {READ_OUTS}".encode())
        parts = [panel.X.toarray(), panel.obsm["spatial"], panel.var["target_gene"], panel.obs["total_counts"]]
        for part in parts + ([panel.obsm["X_image"]] if image else []):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(" ".join([*panel.var_names, *panel.obs[LIBRARY].astype(str)]).encode())
        return digest.hexdigest()[:16]
