"""Means of regions and calls of genes in them, beside the molecules that the model was not given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from lgdist_scvi.data._areas import disjoint_patches, groups_of
from lgdist_scvi.metrics import count_coverage

if TYPE_CHECKING:
    import anndata
    from numpy.typing import NDArray
    from scoring import Record

    from lgdist_scvi import LGDiST

PATCHES = (7, 19, 50)
N_REGIONS = 6
LEVELS = (0.5, 0.8, 0.95)
ERROR = 0.05


def smooth_clusters(adata: anndata.AnnData, counts: NDArray, depth: NDArray, n: int, seed: int) -> NDArray[np.int64]:
    """Clusters of counts that are averaged over two hops of the spatial graph, ``(n_spots,)``."""
    graph = sparse.csr_matrix(adata.obsp["lgdist_connectivities"]) + sparse.eye(adata.n_obs, format="csr")
    shares = graph @ graph @ counts / (graph @ graph @ depth)[:, None]
    values = np.log1p(shares * 1e4)
    return KMeans(n, n_init=3, random_state=seed).fit_predict(PCA(10, random_state=seed).fit_transform(values))


def areas(adata: anndata.AnnData, seed: int) -> dict[str, NDArray[np.int64]]:
    """Number of the area of each spot, -1 for none, by kind of area."""
    positions, random = np.asarray(adata.obsm["spatial"], dtype=float), np.random.default_rng(seed)
    found = {}
    for size in PATCHES:
        patches = disjoint_patches(positions, np.zeros(adata.n_obs, dtype=np.intp), size, random)
        found[f"{size} spots"] = np.full(adata.n_obs, -1)
        found[f"{size} spots"][patches.indices] = np.repeat(np.arange(patches.shape[0]), size)
    # From genes that are not scored: chosen by counts of the others, clusters would hold what is high by chance.
    context = adata.X[:, ~adata.var["eval"].to_numpy()].toarray()
    found["clusters"] = smooth_clusters(adata, context, adata.obs["lib"].to_numpy(), N_REGIONS, seed)
    found["compact regions"] = KMeans(N_REGIONS, n_init=1, random_state=seed).fit_predict(positions)
    return found


def regions(model: LGDiST, train: anndata.AnnData, truth: Record, seed: int) -> Record:
    """Errors of means, raw and completed and combined, their coverage, and calls of genes."""
    genes = list(train.var_names[train.var["eval"].to_numpy()])
    scale = np.asarray(train[:, genes].X.sum(axis=0)).ravel() / train.obs["lib"].sum()
    result: Record = {}
    for name, number in areas(train, seed).items():
        train.obs["area"] = [None if area < 0 else f"{area:05d}" for area in number]
        means = model.get_region_expression(groupby="area", gene_list=genes, silent=True)
        calls, probability = model.detect_expression(
            groupby="area", gene_list=genes, error=ERROR, return_probability=True, silent=True
        )
        _, members = groups_of(train, "area")
        counts, depth = members @ truth["counts"], (members @ truth["lib"])[:, None]
        held_out = counts / depth
        noise = counts / depth**2
        errors = {
            kind: float((((values / 1e4 - held_out) ** 2 - noise) / scale**2).mean())
            for kind, values in {
                "combined": means.X,
                "raw": means.layers["raw"],
                "completed": means.layers["completed"],
            }.items()
        }
        mean, std = np.asarray(means.X, dtype=float) / 1e4 * depth, means.layers["std"].astype(float) / 1e4 * depth
        coverage = [float(count_coverage(counts.ravel(), mean.ravel(), std.ravel(), level)) for level in LEVELS]
        # The other half is about as deep as the given one.
        called, seen = calls.to_numpy().astype(str), counts > 0
        claims = {"present": 1 - probability.to_numpy(), "absent": probability.to_numpy()}
        detection: Record = {"undecided": float((called == "undecided").mean())}
        for call, wrong in {"present": ~seen, "absent": seen}.items():
            if (called == call).sum() >= 200:
                of = called == call
                detection[call] = {
                    "share": float(of.mean()),
                    "claimed": float(claims[call][of].mean()),
                    "wrong": float(wrong[of].mean()),
                }
        result[name] = {
            "n": int(members.shape[0]),
            "errors": errors,
            "coverage": coverage,
            "detection": detection,
        }
    del train.obs["area"]
    return result
