#!/usr/bin/env python3
"""Compare representations of spots by the domains that are found in them, and render the leaderboard.

    domains.py [--sets SET ...] [--methods METHOD ...] [--recipes RECIPE ...] [--seeds N] [--peer-python PYTHON] [--peers-folder FOLDER] [--render]

One protocol for all: the same spots, genes and number of domains; every representation is clustered by every recipe, with
and without a vote. Each score is kept in RESULTS/SET.json as soon as it is there, and what is kept is not made again
(delete the file to begin anew).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from peers.contract import log_values
from scoring import add_interpreters, interpreter

if TYPE_CHECKING:
    from lgdist_scvi import LGDiST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = ROOT.parent / "shared"
CORTEX = ("cortex_151673", "cortex_151674", "cortex_151675", "cortex_151676")
TOGETHER = "cortex_all"
# What is annotated: domains, and what a cell is by itself.
DOMAINS = {**dict.fromkeys(CORTEX, "layer"), "starmap": "layer", "osmfish": "Region", TOGETHER: "layer"}
TYPES = {"starmap": "cell_type", "osmfish": "ClusterName"}
N_COMPONENTS = 20
N_SMOOTHED = 19
SEEDS = 20
OURS = "lgdist"
STATES = ("lgdist_state", "raw_state")
UNKNOWN = ("nan", "NA", "None", "Excluded")
Floats = NDArray[np.floating]


def components(values: Floats, n_components: int = N_COMPONENTS) -> Floats:
    from sklearn.decomposition import PCA

    n_components = min(n_components, values.shape[1])
    return PCA(n_components, svd_solver="full" if values.shape[1] < 50 else "randomized", random_state=0).fit_transform(
        values
    )


def smoothed(adata: anndata.AnnData) -> Floats:
    """Mean log values of a spot and the 18 nearest."""
    from scipy.spatial import cKDTree

    near = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], N_SMOOTHED)[1]
    return np.stack([adata.layers["lognorm"][spots].mean(axis=0) for spots in near])


def raw_pca(adata: anndata.AnnData) -> Floats:
    return components(adata.layers["lognorm"])


def smoothed_pca(adata: anndata.AnnData) -> Floats:
    return components(smoothed(adata))


def smoothed_pca_scaled(adata: anndata.AnnData) -> Floats:
    """As the mixture sees them, for k-means as well."""
    codes = components(smoothed(adata), 15)
    return codes / codes.std(axis=0)


def banksy(adata: anndata.AnnData) -> Floats:
    """As its tutorials: 18 neighbours and a weight of 0.2 for spots, 15 and 0.8 for single cells."""
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy

    n_neighbors, weight = (18, 0.2) if adata.uns["spots"] else (15, 0.8)
    adata = anndata.AnnData(adata.layers["lognorm"], obs=adata.obs, var=adata.var, obsm={"xy": adata.obsm["spatial"]})
    adata.obs["x"], adata.obs["y"] = adata.obsm["xy"][:, :2].T
    quiet = {"plt_edge_hist": False, "plt_nbr_weights": False, "plt_theta": False}
    built = initialize_banksy(adata, ("x", "y", "xy"), n_neighbors, "scaled_gaussian", max_m=1, **quiet)
    matrix = generate_banksy_matrix(adata, built, [weight], max_m=1, verbose=False)[1]
    values = matrix.X.toarray() if hasattr(matrix.X, "toarray") else matrix.X
    return components(np.nan_to_num(np.asarray(values, dtype=float)))


def banksy_harmony(adata: anndata.AnnData) -> Floats:
    return harmony(banksy(adata), adata)


def smoothed_pca_harmony(adata: anndata.AnnData) -> Floats:
    return harmony(smoothed_pca(adata), adata)


def harmony(codes: Floats, adata: anndata.AnnData) -> Floats:
    """Sections aligned, with defaults."""
    import harmonypy

    found = np.asarray(harmonypy.run_harmony(codes, adata.obs, "slide", verbose=False).Z_corr)
    return found if found.shape == codes.shape else found.T


def nichepca(adata: anndata.AnnData) -> Floats:
    """Its workflow with defaults and 25 neighbours; genes are not selected, as the panel is."""
    import nichepca as npc

    counts = anndata.AnnData(adata.X.copy(), obs=adata.obs, var=adata.var, obsm={"spatial": adata.obsm["spatial"]})
    npc.wf.nichepca(counts, knn=25, n_comps=min(30, counts.n_vars - 1))
    return next(np.asarray(counts.obsm[key]) for key in counts.obsm if "npca" in key or "pca" in key.lower())


def scvi_latent(adata: anndata.AnnData) -> Floats:
    import scvi

    counts = anndata.AnnData(adata.X.copy(), obs=adata.obs, var=adata.var)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(counts, batch_key="slide")
    model = scvi.model.SCVI(counts, gene_likelihood="nb")
    model.train(max_epochs=200, accelerator="cpu", enable_progress_bar=False)
    return model.get_latent_representation()


def cellcharter(adata: anndata.AnnData) -> Floats:
    """As its tutorials: scVI's latents of a spot and of each of three rings of neighbours."""
    import cellcharter as cc
    import squidpy as sq

    placed = anndata.AnnData(obsm={"scvi": scvi_latent(adata), "spatial": adata.obsm["spatial"]}, obs=adata.obs)
    placed.obs["slide"] = placed.obs["slide"].astype("category")
    sq.gr.spatial_neighbors(placed, library_key="slide", coord_type="generic", delaunay=True)
    cc.gr.remove_long_links(placed)
    cc.gr.aggregate_neighbors(placed, n_layers=3, use_rep="scvi", out_key="niche", sample_key="slide")
    return np.asarray(placed.obsm["niche"])


def graphst(adata: anndata.AnnData) -> Floats:
    """As its tutorials: components of the reconstruction of scaled log values."""
    from GraphST.GraphST import GraphST

    given = log_values(adata)
    given.X = np.minimum(given.X / np.maximum(given.X.std(axis=0, ddof=1), 1e-9), 10)
    given.var["highly_variable"] = True  # the mark that genes have been chosen, without which it would normalise again
    return components(GraphST(given, random_seed=0).train().obsm["emb"])


def stagate(adata: anndata.AnnData) -> Floats:
    """As its tutorials, on log values, with six neighbours, as many as its radius gives on a hexagonal array."""
    from STAGATE_pyG import Cal_Spatial_Net, train_STAGATE

    given = log_values(adata)
    Cal_Spatial_Net(given, model="KNN", k_cutoff=6)
    return np.asarray(train_STAGATE(given, random_seed=0, device="cpu").obsm["STAGATE"])


def trained(adata: anndata.AnnData) -> LGDiST:
    """A model with the defaults."""
    from lgdist_scvi import LGDiST

    LGDiST.setup_anndata(adata, size_factor_key="lib", library_key="slide")
    model = LGDiST(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def lgdist(adata: anndata.AnnData) -> dict[str, Floats]:
    """Niches and states."""
    model = trained(adata)
    model.add_latent_representation(aligned=adata.obs["slide"].nunique() > 1, silent=True)
    return {OURS: adata.obsm["X_lgdist_niche"], STATES[0]: adata.obsm["X_lgdist"]}


METHODS: dict[str, Callable[[anndata.AnnData], Floats | dict[str, Floats]]] = {
    OURS: lgdist,
    "raw_pca": raw_pca,
    "smoothed_pca": smoothed_pca,
    "smoothed_pca_scaled": smoothed_pca_scaled,
    "banksy": banksy,
    "nichepca": nichepca,
    "scvi_latent": scvi_latent,
    "cellcharter": cellcharter,
    "graphst": graphst,
    "stagate": stagate,
    "smoothed_pca_harmony": smoothed_pca_harmony,
    "banksy_harmony": banksy_harmony,
}
PEERS = (
    "banksy",
    "nichepca",
    "scvi_latent",
    "cellcharter",
    "graphst",
    "stagate",
    "smoothed_pca_harmony",
    "banksy_harmony",
)
OF_SEVERAL = ("smoothed_pca_harmony", "banksy_harmony")


def by_mixture(codes: Floats, n_clusters: int, seed: int) -> NDArray:
    """As `lgdist_scvi.tl.domains` by default, the likeliest of five seeds."""
    from lgdist_scvi import tl

    given = anndata.AnnData(obsm={"codes": codes})
    tl.domains(given, n_clusters, use_rep="codes", seed=5 * seed)
    return given.obs["domain"].cat.codes.to_numpy()


def by_kmeans(codes: Floats, n_clusters: int, seed: int) -> NDArray:
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(codes)


def by_leiden(codes: Floats, n_clusters: int, seed: int) -> NDArray:
    """At the resolution that gives the number of clusters, or one as near as it gets."""
    import scanpy as sc
    from biology import bisect_resolution

    graph = anndata.AnnData(obsm={"codes": np.asarray(codes, dtype=np.float32)})
    sc.pp.neighbors(graph, n_neighbors=15, use_rep="codes", random_state=0)

    def cluster(resolution: float) -> NDArray:
        sc.tl.leiden(graph, resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False)
        return graph.obs["leiden"].cat.codes.to_numpy()

    return bisect_resolution(cluster, n_clusters)


RECIPES = {"mixture": by_mixture, "kmeans": by_kmeans, "leiden": by_leiden}


def voted(labels: NDArray, positions: Floats) -> NDArray:
    """The most frequent label of a spot and the 18 nearest, as `lgdist_scvi.tl.domains` votes."""
    from lgdist_scvi.data._areas import patches_around
    from lgdist_scvi.tl import _domains

    return _domains.voted(labels, patches_around(positions, np.zeros(len(labels), dtype=np.intp), N_SMOOTHED))


def read(name: str) -> anndata.AnnData:
    """Spots, panel and annotation of a set, as the other comparisons have them."""
    from biology import definitions, read_section
    from sets import SETS

    if name == TOGETHER:
        return together({section: read(section) for section in CORTEX})
    shared, path = definitions(SHARED / "bench"), SHARED / "data" / SETS[name].files[0]
    if name in CORTEX:
        section = read_section(shared, path)
        view, labels = section.view, {"layer": section.layers}
    else:
        options = SETS[name].options
        whole = shared.load(path, **options | {"min_umi": int(options["min_umi"])})
        view = shared.training_view(whole, whole.X.tocsr(), None, "B", seed=0)
        obs = shared.read(path).obs.loc[whole.obs_names]
        labels = {key: obs[key].astype(str).to_numpy() for key in {DOMAINS[name], TYPES[name]}}
    for key, column in labels.items():
        view.obs[key] = column
    view.uns["spots"] = name in CORTEX
    return view


def together(sections: dict[str, anndata.AnnData]) -> anndata.AnnData:
    """Sections in one object, with the genes of all panels, so far apart that no spot has neighbours in another."""
    view = anndata.concat(sections, label="slide", index_unique="-")
    view.obs["slide"] = view.obs["slide"].astype(str)
    width = 10 * np.ptp(view.obsm["spatial"], axis=0).max()
    view.obsm["spatial"] = view.obsm["spatial"].astype(float)
    view.obsm["spatial"][:, 0] += width * view.obs["slide"].astype("category").cat.codes
    view.uns["spots"] = True
    return view


def represent(method: str, view: anndata.AnnData, python: str) -> dict[str, Floats]:
    """Representations that a method makes; a peer in its own environment."""
    given = view.copy()
    given.obs = given.obs[["lib", "slide"]]
    if method not in PEERS:
        found = METHODS[method](given)
        return found if isinstance(found, dict) else {method: found}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "given.h5ad", Path(folder) / "codes.npy"
        given.write_h5ad(source)
        command = [python, __file__, "--represent", method, str(source), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return {method: np.load(target)}


def score(labels: NDArray, found: NDArray, sections: pd.Series, spots: NDArray[np.bool_]) -> float:
    """Adjusted Rand index, the mean over the sections."""
    from sklearn.metrics import adjusted_rand_score

    inside = [spots & (sections == section).to_numpy() for section in sections.unique()]
    return fmean(adjusted_rand_score(labels[one], found[one]) for one in inside)


def measure(options: argparse.Namespace) -> None:
    for name in options.sets:
        store = options.out / f"{name}.json"
        results: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}

        def keep(store: Path = store, results: dict[str, Any] = results) -> None:
            store.parent.mkdir(parents=True, exist_ok=True)
            store.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")

        view = read(name)
        known = {key: ~np.isin(view.obs[key], UNKNOWN) for key in view.obs if key in annotated(name)}
        for method in options.methods:
            if method in OF_SEVERAL and name != TOGETHER:
                continue
            wanted = [(r, str(s)) for r in options.recipes for s in range(options.seeds)]
            if all(s in results.get(method, {}).get("domains", {}).get(r, {}) for r, s in wanted):
                continue
            try:
                codes = represent(method, view, interpreter(method, options.peer_python, options.peers_folder))
            except (ImportError, subprocess.CalledProcessError) as error:
                message = getattr(error, "stderr", None) or str(error)
                print(f"{name} {method}: not run ({message.strip().splitlines()[-1]})", flush=True)
                continue
            if method == "raw_pca" and name in TYPES:
                codes[STATES[1]] = codes[method]
            for row, values in codes.items():
                key = TYPES.get(name) if row in STATES else DOMAINS[name]
                if key is None:
                    continue
                record = results.setdefault(row, {}).setdefault("types" if row in STATES else "domains", {})
                labels, spots = view.obs[key].to_numpy(), known[key]
                n_clusters = len(set(labels[spots]))
                for recipe in ("kmeans",) if row in STATES else options.recipes:
                    scores = record.setdefault(recipe, {})
                    for seed in range(options.seeds):
                        if str(seed) in scores:
                            continue
                        found = RECIPES[recipe](np.asarray(values, dtype=float), n_clusters, seed)
                        both = (found, voted(found, view.obsm["spatial"]))
                        scores[str(seed)] = [round(score(labels, one, view.obs["slide"], spots), 4) for one in both]
                        keep()
                    print(f"{name} {row} {recipe}: {fmean(one for one, _ in scores.values()):.3f}", flush=True)


def annotated(name: str) -> set[str]:
    return {DOMAINS[name], *([TYPES[name]] if name in TYPES else [])}


INTRODUCTION = f"""\
# Domains

Which representation of spots shows the domains of a tissue? Every method gets the same spots, the same genes (the panel of the
[comparison](comparison.md) and of [biology kept](biology.md)) and the number of annotated domains. Each representation is clustered by
each recipe, whatever the method's own is, and the best of them counts for it, chosen in hindsight. This page is written by
`make benchmark-domains`; every score is in `benchmarks/results/domains`.

| name | representation |
| --- | --- |
| `lgdist` | `get_latent_representation(kind="niche")` |
| `raw_pca` | {N_COMPONENTS} principal components of log values |
| `smoothed_pca` | the same of means of the spot and the 18 nearest |
| `smoothed_pca_scaled` | 15 components of these means, scaled to unit variance |
| `banksy` | BANKSY (`pybanksy`), 18 neighbours and weight 0.2 on the cortex, 15 and 0.8 elsewhere, {N_COMPONENTS} components |
| `nichepca` | nichePCA (`nichepca`), 25 neighbours, 30 components |
| `scvi_latent` | scVI, negative binomial, 200 epochs, the section as batch |
| `cellcharter` | CellCharter (`cellcharter`): latents of scVI of the spot and of three rings of neighbours |
| `graphst` | GraphST (`graphst-modern`), {N_COMPONENTS} components of its reconstruction |
| `stagate` | STAGATE (`stagate-modern`), 6 neighbours |
| `..._harmony` | aligned by Harmony (`harmonypy`), where there are several sections |

`all` is the four cortex sections clustered together, each scored by itself: our niches with `aligned=True`, the others of
the concatenated sections. Single sections are clustered one by one.

Recipes: `mixture` is {{func}}`lgdist_scvi.tl.domains` by default; `kmeans` has 10 starts, as with `method="kmeans"`;
`leiden` is at a resolution searched for the number. Scores are adjusted Rand indices with the annotation: the mean over seeds of the
clustering, and their standard deviation in brackets. After the bar, the same after a vote of the spot and the 18 nearest.

**In short.** On the cortex BANKSY's representation and ours show the layers equally well in the mean over seeds, both by the mixture. BANKSY's
is better after a vote or, aligned by Harmony, in all sections together; its clusters depend far more on the seed. In the visual cortex by
STARmap our niches are ahead of all others by k-means, with a vote and without; by the mixture a little behind the k-means of smoothed
components and of nichePCA. In osmFISH they are ahead by both recipes.

**What this does not show.** Radius and number of components of our niches were chosen on these very sets, one setting for all, and so was
the advice to use k-means for single cells; on other data expect less. Some rows have few seeds so far (last column); do not rely on small differences there. The layers are bands, so
whatever makes neighbours alike raises the scores.
"""
PUBLISHED = """\
## Published figures

By their own protocols, with all genes and R's mclust in most: mean ARI of the four sections 0.609 (GraphST, 20 runs), 0.591 (BANKSY) and 0.525
(STAGATE). They do not repeat easily: GraphST as installed gave 0.35 on 151673 by k-means and 0.45 after a vote (published: 0.638). They are
not comparable with the tables above.
"""


def spread(scores: list[float]) -> str:
    return f"{fmean(scores):.3f}" + (f" ({stdev(scores):.3f})" if len(scores) > 1 else "")


def cells(record: dict[str, list[float]] | None) -> str:
    if not record:
        return ""
    single, after = zip(*record.values(), strict=True)
    return f"{spread(list(single))} \\| {spread(list(after))}"


def render(options: argparse.Namespace) -> None:
    from report import table

    results = {
        name: json.loads(path.read_text()) if (path := options.out / f"{name}.json").exists() else {}
        for name in DOMAINS
    }
    parts = [INTRODUCTION]
    for recipe in RECIPES:
        rows = []
        for method in METHODS:
            found = [results[name].get(method, {}).get("domains", {}).get(recipe) for name in DOMAINS]
            if not any(found):
                continue
            cortex = [one for one in found[: len(CORTEX)] if one]
            mean = ""
            if len(cortex) == len(CORTEX):
                means = [fmean(fmean(s[i] for s in one.values()) for one in cortex) for i in (0, 1)]
                mean = f"**{means[0]:.3f}** \\| {means[1]:.3f}"
            n_seeds = {len(one) for one in found if one}
            rows.append(
                [f"`{method}`", mean, *map(cells, found), "-".join(map(str, sorted({min(n_seeds), max(n_seeds)})))]
            )
        if rows:
            head = ["method", "cortex, mean", *(name.removeprefix("cortex_") for name in DOMAINS), "seeds"]
            parts.append("\n".join([f"## {recipe}\n", *table(head, rows)]) + "\n")
    types = []
    for row, title in zip(STATES, ('`get_latent_representation(kind="state")`', "`raw_pca`"), strict=True):
        found = [results[name].get(row, {}).get("types", {}).get("kmeans") for name in TYPES]
        if any(found):
            types.append([title, *(spread([one for one, _ in record.values()]) if record else "" for record in found)])
    if types:
        parts.append(
            "\n".join(
                ["## Cell types\n", "k-means, the number of annotated types.\n", *table(["state", *TYPES], types)]
            )
            + "\n"
        )
    parts.append(PUBLISHED)
    options.pages.mkdir(parents=True, exist_ok=True)
    (options.pages / "domains.md").write_text("\n".join(parts), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, known in {"sets": DOMAINS, "methods": METHODS, "recipes": RECIPES}.items():
        names = tuple(known)
        parser.add_argument(f"--{option}", nargs="+", choices=names, default=names, metavar=option[:-1].upper())
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds of the clustering")
    add_interpreters(parser, "pybanksy, nichepca, cellcharter and harmonypy")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "domains")
    parser.add_argument("--pages", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    parser.add_argument("--represent", nargs=3, help=argparse.SUPPRESS)  # in the environment of a peer
    options = parser.parse_args(arguments)
    if options.represent:
        method, source, target = options.represent
        np.save(target, METHODS[method](anndata.read_h5ad(source)))
        return
    if not options.render:
        measure(options)
    render(options)


if __name__ == "__main__":
    main()
