#!/usr/bin/env python3
"""Ask whether completed expression keeps the biology of four annotated cortex sections, and render the answer.

    biology.py [--sections SECTION ...] [--methods METHOD ...] [--seeds SEED ...]

Scored are clusters against the annotated layers, known markers of these layers, and what is shown where a gene is absent.
Every result goes to RESULTS/SECTION_biology_seedSEED.json as soon as it is there, and is good for as long as what it was
made from stays the same: the data, the harness, the recipe in this file, and for LGDiST the code. Then the page, the
table and the picture in docs/benchmarks are written from all results that are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import anndata
import numpy as np
import pandas as pd
from compare import (
    INSTALL,
    MODEL,
    NOT_INSTALLED,
    OURS,
    RESULTS,
    SETS,
    Case,
    Code,
    Harness,
    Record,
    Store,
    is_current,
    parse_running,
    recipe_key,
    started,
)
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image
from report import PAGES, spread, table, versions
from scipy import sparse, stats
from scipy.optimize import linear_sum_assignment

# recipe begins: with a change from here on, results are made anew
SECTIONS = ("cortex_151673", "cortex_151674", "cortex_151675", "cortex_151676")
LAYERS = ("L1", "L2", "L3", "L4", "L5", "L6", "WM")
# Known from other tissue and other methods than these sections: Zeng et al. 2012, and the in-situ stainings of
# Maynard et al. 2021. Those that the panel lacks are added to it, for all methods alike.
MARKERS = {
    "RELN": ("L1",),
    "CXCL14": ("L1",),
    "AQP4": ("L1", "WM"),
    "GFAP": ("L1", "WM"),
    "HPCAL1": ("L2",),
    "LAMP5": ("L2", "L3"),
    "CUX2": ("L2", "L3"),
    "CARTPT": ("L2", "L3"),
    "RORB": ("L4",),
    "PCP4": ("L5",),
    "TRABD2A": ("L5",),
    "KRT17": ("L6",),
    "MBP": ("WM",),
    "MOBP": ("WM",),
    "PLP1": ("WM",),
}
TARGET_SUM = 1e4
N_COMPONENTS = 30
N_NEIGHBORS = 15
CLUSTERING_SEEDS = range(5)
ABSENT = 0.1
CONFIDENCE = 0.95
# What one run of a method yields: completed log values, or codes, which are clustered as they are.
ROWS = {
    "raw": ("raw",),
    "smooth6": ("smooth6",),
    "smooth18": ("smooth18",),
    "median": ("median",),
    "magic": ("magic",),
    "knn_eb": ("knn_eb",),
    "scvi": ("scvi", "scvi_latent"),
    OURS: (OURS, f"{OURS}_kept", f"{OURS}_latent"),
}
# Run in the peers' environment; and those whose results depend on a seed.
PEERS = ("median", "magic", "knn_eb", "scvi")
SEEDED = ("magic", "knn_eb", "scvi", OURS)
CODES = ("scvi_latent", f"{OURS}_latent")
DRAWN = SECTIONS[0]
DRAWN_ROWS = ("raw", *ROWS[OURS])
DRAWN_GENES = ("MBP", "PCP4")

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Section:
    """A section as every method gets it, and the annotation, which none of them does."""

    view: anndata.AnnData
    layers: NDArray[np.str_]

    @property
    def counts(self) -> Floats:
        return self.view.X.toarray().astype(float)

    @property
    def depth(self) -> Floats:
        return self.view.obs["lib"].to_numpy(dtype=float)

    @property
    def n_layers(self) -> int:
        return len(set(self.layers) & set(LAYERS))


def definitions(folder: Path) -> ModuleType:
    """The shared definitions of spots, panel and neighbours."""
    spec = importlib.util.spec_from_file_location("completion", folder / "completion.py")
    module = importlib.util.module_from_spec(spec)
    write, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is written beside the harness
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = write
    return module


def read_section(shared: ModuleType, path: Path) -> Section:
    """Read a section: the spots and the panel of the harness, and the markers that the panel lacks."""
    section = shared.load(path)
    whole = shared.read(path)[section.obs_names]
    rare = [gene for gene in MARKERS if gene in whole.var_names and gene not in section.var_names]
    rest = anndata.AnnData(
        whole[:, rare].X.astype(np.float32), obs=section.obs, var=pd.DataFrame({"panel": True}, index=rare)
    )
    section = anndata.concat([section, rest], axis="var", merge="first", uns_merge="first")
    section.var["panel"] |= section.var_names.isin(list(MARKERS))
    section.var["eval"] = section.var["panel"]  # all genes are asked for
    view = shared.training_view(section, section.X.tocsr(), None, "B", seed=0)
    return Section(view, whole.obs["layer"].astype(str).to_numpy())


# What each method makes of a section.


def smooth(shared: ModuleType, section: Section, n_neighbors: int) -> Floats:
    """Mean of the log values of a spot and its nearest spots."""
    graph = shared.knn_graph(section.view.obsm["spatial"], section.view.obs["slide"].to_numpy(), n_neighbors)
    graph = graph + sparse.eye(len(section.layers), format="csr")
    return (graph @ section.view.layers["lognorm"]) / np.asarray(graph.sum(axis=1))


def fit_scvi(adata: anndata.AnnData) -> anndata.AnnData:
    """Train as the harness does, and read out the rates and the code."""
    import scvi

    scvi.settings.seed = int(adata.uns["seed"])
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    model.train(max_epochs=200, accelerator="cpu", enable_progress_bar=False)
    rates = model.get_normalized_expression(library_size=1, n_samples=25, return_numpy=True)
    # From shares of the panel to shares of the depth.
    rates = rates * (np.asarray(adata.X.sum(axis=1)) / adata.obs["lib"].to_numpy()[:, None])
    latent = {"latent": model.get_latent_representation(kind="code")}
    return anndata.AnnData(np.log1p(rates * TARGET_SUM), obs=adata.obs, var=adata.var, obsm=latent)


def fit_lgdist(adata: anndata.AnnData) -> anndata.AnnData:
    """Train with the defaults, and read out both completions and the code."""
    import torch

    from lgdist_scvi import LGDiST

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    LGDiST.setup_anndata(adata, size_factor_key="lib")
    model = LGDiST(adata, seed=int(adata.uns["seed"]))
    model.train(enable_progress_bar=False)
    completed = anndata.AnnData(model.get_completed_expression(silent=True))
    completed.layers["kept"] = model.get_completed_expression(keep_observed=True, silent=True)
    completed.obsm["latent"] = model.get_latent_representation(kind="code")
    return completed


FITS: dict[str, Callable[[anndata.AnnData], anndata.AnnData]] = {"scvi": fit_scvi, OURS: fit_lgdist}


def complete(
    method: str, section: Section, seed: int, shared: ModuleType, harness: Harness, code: Path | None
) -> dict[str, Floats] | str:
    """Rows that a method yields, or the message with which it failed."""
    if method == "raw":
        return {"raw": section.view.layers["lognorm"]}
    if method.startswith("smooth"):
        return {method: smooth(shared, section, int(method.removeprefix("smooth")))}
    given, made = (harness.work / f"{name}.h5ad" for name in ("given", "made"))
    section.view.uns["seed"] = seed
    section.view.write_h5ad(given)
    made.unlink(missing_ok=True)
    environment = {**harness.environment, "OMP_NUM_THREADS": str(harness.threads)}
    if method in FITS:
        command = [str(Path(__file__).resolve()), "--fit", method, str(given), str(made)]
    else:
        command = [str(harness.bench / "methods.py"), method, str(given), str(made)]
    python = harness.python(method)
    if method == OURS:
        python = sys.executable
        environment["PYTHONPATH"] = str(code / "src")  # before an installed package
    status, message = harness.call([python, *command], environment, harness.timeout)
    if status:
        return message
    completed = anndata.read_h5ad(made)[:, section.view.var_names]
    values = np.asarray(completed.X, dtype=float)
    if completed.uns.get("space") == "rate":
        values = np.log1p(values * TARGET_SUM)
    parts = (values, completed.layers.get("kept"), completed.obsm.get("latent"))
    rows = dict(zip(ROWS[method], (part for part in parts if part is not None), strict=True))
    broken = [name for name, part in rows.items() if not np.isfinite(part).all()]
    return f"not finite: {', '.join(broken)}" if broken else rows


# What is measured of a row.


def components(values: Floats) -> Floats:
    """Principal components of centred, unscaled log values."""
    from sklearn.decomposition import PCA

    return PCA(N_COMPONENTS, svd_solver="arpack", random_state=0).fit_transform(values)


def bisect_resolution(
    cluster: Callable[[float], NDArray[np.integer]], n_clusters: int, *, highest: float = 4.0, n_steps: int = 20
) -> NDArray[np.integer]:
    """Cluster at the resolution that gives a number of clusters, or, if none does, as near to it as was seen.

    Parameters
    ----------
    cluster
        Labels of the spots at a resolution.
    n_clusters
        The number asked for.
    highest
        Resolution that gives more clusters than asked for.
    n_steps
        Resolutions that are tried at most.

    Returns
    -------
    Labels of the spots.
    """
    lowest, nearest = 0.0, None
    for _ in range(n_steps):
        resolution = (lowest + highest) / 2
        labels = cluster(resolution)
        found = len(np.unique(labels))
        if nearest is None or abs(found - n_clusters) < abs(len(np.unique(nearest)) - n_clusters):
            nearest = labels
        if found == n_clusters:
            break
        lowest, highest = (resolution, highest) if found < n_clusters else (lowest, resolution)
    return nearest


def cluster_kmeans(codes: Floats, n_clusters: int) -> list[NDArray[np.integer]]:
    """Clusters by k-means, one set for each seed."""
    from sklearn.cluster import KMeans

    return [KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(codes) for seed in CLUSTERING_SEEDS]


def cluster_leiden(codes: Floats, n_clusters: int) -> list[NDArray[np.integer]]:
    """Clusters by Leiden on a graph of nearest neighbours, one set for each seed."""
    import scanpy as sc

    adata = anndata.AnnData(obsm={"codes": np.asarray(codes, dtype=np.float32)})
    sc.pp.neighbors(adata, n_neighbors=N_NEIGHBORS, use_rep="codes", random_state=0)

    def cluster(resolution: float, seed: int) -> NDArray[np.integer]:
        sc.tl.leiden(adata, resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False)
        return adata.obs["leiden"].cat.codes.to_numpy()

    return [bisect_resolution(lambda r, seed=seed: cluster(r, seed), n_clusters) for seed in CLUSTERING_SEEDS]


def agreement(clusterings: list[NDArray[np.integer]], layers: NDArray[np.str_]) -> dict[str, float]:
    """Mean ARI and NMI of clusterings against the layers of the annotated spots."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = np.isin(layers, LAYERS)
    return {
        "ari": fmean(adjusted_rand_score(layers[known], labels[known]) for labels in clusterings),
        "nmi": fmean(normalized_mutual_info_score(layers[known], labels[known]) for labels in clusterings),
        "clusters": fmean(len(np.unique(labels)) for labels in clusterings),
    }


def auc(values: Floats, inside: NDArray[np.bool_]) -> float:
    """Chance that a spot inside has a higher value than one outside; ties count one half."""
    n_inside = inside.sum()
    above = stats.rankdata(values)[inside].sum() - n_inside * (n_inside + 1) / 2
    return float(above / (n_inside * (~inside).sum()))


def standardised_difference(values: Floats, inside: NDArray[np.bool_]) -> float:
    """Difference of the means inside and outside, in units of the spread within the two."""
    one, other = values[inside], values[~inside]
    within = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2)
    return float((one.mean() - other.mean()) / within) if within > 0 else 0.0


def sharpness(values: Floats, genes: pd.Index, layers: NDArray[np.str_]) -> dict[str, Record]:
    """How well each marker tells its layers from the others."""
    known = np.isin(layers, LAYERS)
    scores = {}
    for gene in genes.intersection(list(MARKERS), sort=False):
        marker, inside = values[known, genes.get_loc(gene)], np.isin(layers[known], MARKERS[gene])
        scores[gene] = {"auc": auc(marker, inside), "difference": standardised_difference(marker, inside)}
    return scores


def over_imputation(values: Floats, counts: Floats, depth: Floats, layers: NDArray[np.str_]) -> dict[str, float]:
    """How much a method shows where a gene is absent.

    A gene is absent from a layer if the upper confidence limit of its rate there, all counts over all depth, is below a
    tenth of its rate in the layer where that is highest. The score of such a pair is the completed rate in the layer as
    a share of the completed rate in the gene's highest layer, less the same share of the raw counts.

    Parameters
    ----------
    values
        Completed log values, of shape ``(n_spots, n_genes)``.
    counts
        Raw counts.
    depth
        Counts of the spots over all genes; also their weight in the completed rate of a layer.
    layers
        Layer of each spot; others than those known are left out.

    Returns
    -------
    Mean and median of the scores, share of the pairs that are not absent any more, and number of the pairs.
    """
    present = [layer for layer in LAYERS if layer in layers]
    members = np.array([layers == layer for layer in present], dtype=float)
    pooled, pooled_depth = members @ counts, (members @ depth)[:, None]
    raw = pooled / pooled_depth
    # The weights make a method that returns the raw values score 0.
    completed = (members @ (np.expm1(values) * depth[:, None])) / pooled_depth
    limit = stats.chi2.ppf(CONFIDENCE, 2 * (pooled + 1)) / 2 / pooled_depth
    absent = limit < ABSENT * raw.max(axis=0)
    top = raw.argmax(axis=0), np.arange(raw.shape[1])
    shown = completed[absent] / np.broadcast_to(np.maximum(completed[top], 1e-12), raw.shape)[absent]
    scores = shown - (raw / np.maximum(raw[top], 1e-12))[absent]
    return {
        "over_mean": float(scores.mean()) if scores.size else 0.0,
        "over_median": float(np.median(scores)) if scores.size else 0.0,
        "over_share": float((shown >= ABSENT).mean()) if scores.size else 0.0,
        "over_pairs": int(absent.sum()),
    }


def score(row: str, values: Floats, section: Section) -> tuple[Record, NDArray[np.integer]]:
    """Scores of a row, and clusters for the picture."""
    codes = values if row in CODES else components(values)
    recipes = {"kmeans": cluster_kmeans(codes, section.n_layers), "leiden": cluster_leiden(codes, section.n_layers)}
    scores: Record = {}
    for recipe, clusterings in recipes.items():
        scores |= {f"{recipe}_{name}": value for name, value in agreement(clusterings, section.layers).items()}
    if row not in CODES:
        scores |= over_imputation(values, section.counts, section.depth, section.layers)
        scores["markers"] = sharpness(values, section.view.var_names, section.layers)
    return scores, recipes["kmeans"][0]


def scored(rows: dict[str, Floats], section: Section, *, draw: bool) -> Record:
    """Scores of the rows of a method, with what is needed to draw some of them."""
    record: Record = {"rows": {}}
    for row, values in rows.items():
        record["rows"][row], clusters = score(row, values, section)
        if draw and row in DRAWN_ROWS:
            record.setdefault("drawing", {})[row] = drawing(row, values, clusters, section)
    return record


def drawing(row: str, values: Floats, clusters: NDArray[np.integer], section: Section) -> Record:
    """What the picture needs of a row, as text: a list would take a line for each spot."""
    drawn: Record = {"clusters": "".join(map(str, clusters))}
    if row not in CODES:
        for gene in DRAWN_GENES:
            drawn[gene] = " ".join(f"{value:.2f}" for value in values[:, section.view.var_names.get_loc(gene)])
    return drawn


def outline(section: Section) -> Record:
    """Places and layers of the spots, for the picture."""
    x, y = np.rint(section.view.obsm["spatial"]).astype(int).T
    layers = "".join(str(LAYERS.index(layer)) if layer in LAYERS else "-" for layer in section.layers)
    return {"x": " ".join(map(str, x)), "y": " ".join(map(str, y)), "layers": layers}


# recipe ends: what follows collects and renders results

CASES = [Case(name, "biology", seed) for name in SECTIONS for seed in (0, 1, 2)]
COMPLETED = (OURS, f"{OURS}_kept")
ABOVE_RAW = 0.05
RECIPES = {"kmeans": "k-means", "leiden": "Leiden"}
# Told apart by the colour-blind, too (Okabe and Ito), in an order that sets neighbouring layers apart.
PALETTE = ("#0072b2", "#e69f00", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#000000")

INTRODUCTION = f"""\
# Biology kept

Does completed expression show the biology better than the counts, without showing more than there is? This page asks it
of four sections of human dorsolateral prefrontal cortex, whose spots are annotated with the layers L1 to L6 and white
matter (WM). It is written by `make benchmark-biology`. Every figure is in {{download}}`biology.csv`.

Every method gets the same spots, those with at least 200 counts, and the same genes: the 1,024 with the strongest spatial
pattern (Moran's I), as in the [comparison](all_results.md), and those of the {len(MARKERS)} markers below that are not among
them. Nothing is hidden from the methods but the annotation. Each figure is the mean over the sections, with the lowest and
the highest in brackets; a section counts with the mean over its seeds.

| name | what it is |
| --- | --- |
| `raw` | $\\log(1 + 10^4\\,y/\\ell)$, with the depth $\\ell$ over all genes |
| `smooth6`, `smooth18` | mean of these log values over the spot and its 6 or 18 nearest spots |
| `median` | zeros filled with the median of the surroundings. It over-imputes by construction, and is here to give the scale |
| `magic` | MAGIC: diffusion over spots with similar expression |
| `knn_eb` | mean of neighbours in space and in expression, to which each spot's own counts are shrunk |
| `scvi`, `scvi_latent` | scVI, negative binomial, 200 epochs: its normalised expression, and its code |
| `{OURS}` | LGDiST with its defaults: the expected expression of every entry |
| `{OURS}_kept` | the same with `keep_observed=True`: detected entries as measured, the others completed |
| `{OURS}_latent` | its code, `get_latent_representation(kind="code")` |
"""
CLUSTERING = f"""\
Expression is reduced to {N_COMPONENTS} principal components, centred and not scaled; codes are taken as they are. Then, the
same for all, the spots are grouped into as many clusters as the section has layers: by **k-means** (10 starts), and by
**Leiden** on a graph of {N_NEIGHBORS} nearest neighbours, at a resolution that gives this number, found by bisection. Both are
repeated with {len(CLUSTERING_SEEDS)} seeds, and the mean of the adjusted Rand index (ARI) and of the normalised mutual
information (NMI) against the annotation is given.

The layers are bands, so whatever makes neighbouring spots alike raises these scores, right or wrong. They were annotated by
people who looked at the tissue and at some of the marker genes.
"""
SHARPNESS = """\
**AUC**: the chance that a spot of the marker's layers has a higher value than a spot of another layer; 0.5 says that the
gene tells nothing. **Difference**: that of the means in these layers and in the others, in units of the standard deviation
within the two. Both reward a smooth map, and neither notices expression that was invented elsewhere at a low level: read
them together with the [over-imputation score](#over-imputation).
"""
OVER_IMPUTATION = f"""\
(over-imputation)=
## Over-imputation score

A gene counts as *absent* from a layer if the upper limit of its rate there (one-sided {CONFIDENCE:.0%} Poisson limit of all its
counts in the layer, over the depth of all spots of the layer) is below {ABSENT:.0%} of its rate in the layer where that is
highest. The limit leaves out genes with too few counts to tell. For every such pair of a gene $g$ and a layer $l$, with $h$
the highest layer of the gene in the raw counts,

$$
\\text{{score}}_{{gl}} = \\frac{{\\hat r_{{gl}}}}{{\\hat r_{{gh}}}} - \\frac{{r_{{gl}}}}{{r_{{gh}}}},
\\qquad
r_{{gl}} = \\frac{{\\sum_{{i \\in l}} y_{{ig}}}}{{\\sum_{{i \\in l}} \\ell_i}},
\\qquad
\\hat r_{{gl}} = \\frac{{\\sum_{{i \\in l}} \\ell_i\\,\\hat\\rho_{{ig}}}}{{\\sum_{{i \\in l}} \\ell_i}},
$$

where $\\hat\\rho_{{ig}}$ is the completed rate, $e^{{\\hat x_{{ig}}}} - 1$ of a completed log value. 0 says that nothing was
invented, and `raw` has exactly 0; 0.3 says that where a gene is absent, a further 30% of the rate of its highest layer are
shown. The pooled raw counts are the yardstick because they are unbiased, whatever the noise of single spots. *Shown* is the
share of the pairs whose completed rate is {ABSENT:.0%} of that in the highest layer or more, so that the gene would not pass for
absent any more.

The score asks about whole layers, so blurring across a border between two of them barely changes it. An average of log values
(`smooth6`, `smooth18`, `magic`) understates rates, and low ones more than high ones, so that it can even come out below 0.
"""

Results = dict[Case, dict[str, Record]]


def measure(options: argparse.Namespace, harness: Harness, store: Store) -> None:
    """Run what is not kept yet, and keep it."""
    code = Code(dirty=options.dirty, measured={"tree": MODEL})
    recipe = recipe_key(Path(__file__))
    todo = []
    for case in CASES:
        if case.name not in options.sections or case.seed not in options.seeds:
            continue
        kept, key = store.load(case)["results"], {"data": harness.data_key(case.name), "harness": harness.key}
        for method in options.methods:
            key = {**key, "recipe": recipe, **(code.key if method == OURS else {})}
            asked = method in SEEDED or case.seed == 0
            if asked and not is_current(kept.get(method), key, retry=options.retry):
                todo.append((case, method, key))
    print(f"{len(todo)} runs to do; results in {store.folder}", flush=True)

    packages = {method: method if method in INSTALL else "classical" for _, method, _ in todo if method in PEERS}
    reasons = {package: harness.why_not(package) for package in set(packages.values())}
    place = code.place(harness.work) if any(method == OURS for _, method, _ in todo) else None
    shared, sections = definitions(harness.bench), {}
    for number, (case, method, key) in enumerate(todo, 1):
        info, record, start = {}, dict(key), time.perf_counter()
        if reason := reasons.get(packages.get(method)):
            record["error"] = f"{NOT_INSTALLED}{reason}"
            print(f"{harness.python(packages[method])} cannot run {method}: {INSTALL[packages[method]]}", flush=True)
        else:
            if case.name not in sections:  # one at a time in memory
                sections = {case.name: read_section(shared, harness.paths(case.name)[0])}
            section = sections[case.name]
            info = {"spots": len(section.layers), "genes": section.view.n_vars}
            info |= outline(section) if case.name == DRAWN else {}
            rows = complete(method, section, case.seed, shared, harness, place)
            record |= {"seconds": time.perf_counter() - start} | ({"commit": code.commit} if method == OURS else {})
            record |= {"error": rows} if isinstance(rows, str) else scored(rows, section, draw=case == CASES[0])
        # Six digits say enough.
        store.merge(
            case, info, {method: json.loads(json.dumps(record), parse_float=lambda text: round(float(text), 6))}
        )
        says = record.get("error") or ", ".join(f"{row} {s['kmeans_ari']:.3f}" for row, s in record["rows"].items())
        print(f"[{number}/{len(todo)}] {case} {method}: {says} in {time.perf_counter() - start:.0f} s", flush=True)


def by_section(results: Results, row: str, name: str, gene: str | None = None) -> dict[str, float]:
    """A score of a row in every section that has it, as the mean over the seeds."""
    found = defaultdict(list)
    for case, records in results.items():
        for record in records.values():
            scores = record.get("rows", {}).get(row, {})
            scores = scores if gene is None else scores.get("markers", {}).get(gene, {})
            if name in scores:
                found[case.name].append(scores[name])
    return {section: fmean(values) for section, values in found.items()}


def rows_with(results: Results, *, codes: bool) -> list[str]:
    """Rows that have been scored."""
    rows = [row for rows in ROWS.values() for row in rows if codes or row not in CODES]
    return [row for row in rows if by_section(results, row, "kmeans_ari")]


def label(row: str) -> str:
    return f"**`{row}`**" if row.startswith(OURS) else f"`{row}`"


def lacking(results: Results) -> dict[tuple[str, str], list[str]]:
    """Sections, by method and reason, without a result."""
    found = defaultdict(list)
    for case in CASES:
        for method in ROWS:
            record = results[case].get(method, {"error": "not run yet"} if case.seed == 0 else {})
            if "error" in record:
                reason = " ".join(record["error"].replace("|", "/").split())  # fits a cell of a table
                found[method, reason].append(SETS[case.name].title + (f" (seed {case.seed})" if case.seed else ""))
    return found


def targets(results: Results) -> list[str]:
    """Whether the target is met, with either recipe and for either read-out."""
    lines, head = [], ["clusters by", "expression", "ARI", "above `raw`", "best peer", "its ARI", "above it", "target"]
    peers = [row for row in rows_with(results, codes=True) if row != "raw" and not row.startswith(OURS)]
    so_far = " so far" if lacking(results) else ""
    for recipe, row in product(RECIPES, COMPLETED):
        ours, raw = (by_section(results, name, f"{recipe}_ari") for name in (row, "raw"))
        sections = [name for name in SECTIONS if name in ours and name in raw]
        scores = {peer: by_section(results, peer, f"{recipe}_ari") for peer in peers}
        # Only peers that were scored wherever we were: the sections differ more than the methods.
        theirs = {
            p: fmean(s[name] for name in sections) for p, s in scores.items() if sections and set(sections) <= set(s)
        }
        if not theirs:
            continue
        mean, floor = (fmean(scores[name] for name in sections) for scores in (ours, raw))
        best = max(theirs, key=lambda peer: theirs[peer])
        met = mean - floor >= ABOVE_RAW and mean >= theirs[best]
        cells = [RECIPES[recipe], label(row), f"{mean:.3f}", f"{mean - floor:+.3f}", label(best), f"{theirs[best]:.3f}"]
        lines.append([*cells, f"{mean - theirs[best]:+.3f}", f"{'met' if met else 'not met'}{so_far}"])
    if not lines:
        return ["The target cannot be judged yet."]
    met = sum(line[-1].startswith("met") for line in lines)
    return [
        f"Target: the ARI of completed expression, on the mean of the four sections, at least {ABOVE_RAW:.2f} above that of "
        f"`raw` and not below that of the best peer, scVI's code included, chosen in hindsight. Met{so_far} in {met} of "
        f"{len(lines)} combinations of recipe and read-out:",
        *table(head, lines),
    ]


def clustering(results: Results) -> list[str]:
    """Scores of all rows, the best first, and the ARI section by section."""
    names = [f"{recipe}_{name}" for recipe in RECIPES for name in ("ari", "nmi")]
    rows = sorted(
        rows_with(results, codes=True), key=lambda row: -fmean(by_section(results, row, "kmeans_ari").values())
    )
    if not rows:
        return []
    head = ["", *(f"{title} {name}" for title in RECIPES.values() for name in ("ARI", "NMI")), "sections"]
    lines = [
        [
            label(row),
            *(spread(by_section(results, row, name).values(), ".3f") for name in names),
            str(len(by_section(results, row, names[0]))),
        ]
        for row in rows
    ]
    parts = table(head, lines)
    missed = [row for row in rows if set(by_section(results, row, "leiden_clusters").values()) - layer_numbers(results)]
    if missed:
        parts += [
            f"No resolution gave Leiden the right number of clusters everywhere: {', '.join(map(label, missed))}.",
            "",
        ]
    sections = [name for name in SECTIONS if any(name in by_section(results, row, names[0]) for row in rows)]
    found = {
        row: [[by_section(results, row, f"{recipe}_ari").get(name) for recipe in RECIPES] for name in sections]
        for row in rows
    }
    lines = [
        [label(row), *(" / ".join(f"{value:.3f}" for value in cell) if cell[0] is not None else "" for cell in cells)]
        for row, cells in found.items()
    ]
    return [
        *parts,
        "Section by section, the ARI by k-means / Leiden:",
        *table(["", *(SETS[n].title for n in sections)], lines),
    ]


def layer_numbers(results: Results) -> set[float]:
    """Numbers of clusters that were asked for."""
    return {
        count
        for row in rows_with(results, codes=True)
        for count in by_section(results, row, "kmeans_clusters").values()
    }


def markers(results: Results) -> list[str]:
    """Sharpness of each marker, for all rows side by side."""
    rows = rows_with(results, codes=False)
    parts = []
    for name, title, form in (("auc", "AUC", ".3f"), ("difference", "Difference", ".2f")):
        scores = {g: [fmean(s.values()) for row in rows if (s := by_section(results, row, name, g))] for g in MARKERS}
        scores = {gene: values for gene, values in scores.items() if values}
        if scores:
            lines = [
                [f"*{g}*", ", ".join(MARKERS[g]), *(f"{v:{form}}" for v in values)] for g, values in scores.items()
            ]
            means = [f"**{fmean(values):{form}}**" for values in zip(*scores.values(), strict=True)]
            head = [title, "layers", *map(label, rows)]
            parts += table(head, [*lines, ["**mean**", "", *means]])
    return parts


def over_imputed(results: Results) -> list[str]:
    """Over-imputation scores, the lowest first."""
    rows = sorted(rows_with(results, codes=False), key=lambda r: fmean(by_section(results, r, "over_mean").values()))
    if not rows:
        return []
    names = {"over_mean": "+z.3f", "over_median": "+z.3f", "over_share": ".0%"}
    pairs = sorted(by_section(results, rows[0], "over_pairs").values())
    lines = [[label(r), *(spread(by_section(results, r, n).values(), form) for n, form in names.items())] for r in rows]
    return [
        f"Pairs in a section: {pairs[0]:.0f} to {pairs[-1]:.0f}." if len(pairs) > 1 else f"Pairs: {pairs[0]:.0f}.",
        *table(["", "mean", "median", "shown"], lines),
    ]


def missing(results: Results) -> list[str]:
    """What has no score, and why."""
    together = defaultdict(list)
    for (method, reason), places in lacking(results).items():
        together[tuple(places), reason].append(f"`{method}`")
    rows = [[", ".join(methods), "; ".join(places), why] for (places, why), methods in together.items()]
    return ["## Missing", *table(["methods", "where", "why"], rows)] if rows else []


def page(results: Results, *, drawn: bool) -> str:
    lines = [INTRODUCTION, versions(results)]
    if len({record.get("recipe") for records in results.values() for record in records.values()}) > 1:
        lines += ["Not all scores are of the same version of `biology.py`; the next run brings them up to date."]
    lines += [""]
    if drawn:
        lines += ["```{image} biology.png"]
        lines += [":alt: Layers, clusters and two marker genes, measured and completed", ":width: 100%", "```", ""]
        lines += [
            f"{SETS[DRAWN].title[0].upper()}{SETS[DRAWN].title[1:]}, with the clusters by k-means in the colours of the layers "
            "with which they overlap most. Genes: one scale per row, from 0 to the 99th percentile of `raw`.",
            "",
        ]
    lines += ["## Clusters and layers", "", *targets(results), "", CLUSTERING, *clustering(results)]
    lines += [
        "## Markers",
        "",
        SHARPNESS,
        *markers(results),
        OVER_IMPUTATION,
        *over_imputed(results),
        *missing(results),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def long_form(results: Results) -> pd.DataFrame:
    """Every figure, one row for each section, seed, method and score."""
    found = []
    for case, records in results.items():
        for record in (records[method] for method in ROWS if method in records):
            for row, scores in record.get("rows", {}).items():
                genes = {"": {k: v for k, v in scores.items() if k != "markers"}, **scores.get("markers", {})}
                found += [(case.name, case.seed, row, n, g, v) for g, named in genes.items() for n, v in named.items()]
    return pd.DataFrame(found, columns=["section", "seed", "method", "score", "gene", "value"])


def match(clusters: NDArray[np.integer], layers: NDArray[np.integer]) -> NDArray[np.integer]:
    """Number the clusters like the layers with which they overlap most, each layer once."""
    overlap = np.zeros((clusters.max() + 1, len(LAYERS)))
    np.add.at(overlap, (clusters[layers >= 0], layers[layers >= 0]), 1)
    cluster, layer = linear_sum_assignment(-overlap)
    numbers = np.full(len(overlap), -1)
    numbers[cluster] = layer
    return numbers[clusters]


def plot(results: Results, store: Store) -> Figure | None:
    """Maps of one section: layers, clusters and two genes, measured and completed."""
    info, records = store.load(CASES[0])["info"], results[CASES[0]]
    drawings = {row: drawn for record in records.values() for row, drawn in record.get("drawing", {}).items()}
    if not set(DRAWN_ROWS) <= set(drawings):
        return None
    x, y = (np.array(info[axis].split(), dtype=float) for axis in "xy")
    layers = np.array([-1 if letter == "-" else int(letter) for letter in info["layers"]])
    titles = {"raw": "raw", OURS: "LGDiST", f"{OURS}_kept": "LGDiST, measured kept"}
    figure = Figure(figsize=(8.2, 7.6), layout="constrained")
    panels = figure.subplots(1 + len(DRAWN_GENES), 2 + len(titles), width_ratios=[*[1] * (1 + len(titles)), 0.04])

    def draw(axes: Axes, title: str, **style: Any) -> PathCollection:
        axes.set_title(title, fontsize=9)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.invert_yaxis()  # as in an image
        return axes.scatter(x, y, s=5, linewidth=0, **style)

    def draw_groups(axes: Axes, title: str, groups: NDArray[np.integer]) -> None:
        draw(axes, title, c=[PALETTE[group] if group >= 0 else "#dddddd" for group in groups])

    def clusters(row: str) -> NDArray[np.integer]:
        return match(np.array(list(drawings[row]["clusters"]), dtype=int), layers)

    def expression(row: str, gene: str) -> Floats:
        return np.array(drawings[row][gene].split(), dtype=float)

    draw_groups(panels[0, 0], "annotated layers", layers)
    draw_groups(panels[1, 0], "clusters: LGDiST's code", clusters(f"{OURS}_latent"))
    for column, (row, title) in enumerate(titles.items(), 1):
        draw_groups(panels[0, column], f"clusters: {title}", clusters(row))
        for line, gene in enumerate(DRAWN_GENES, 1):
            highest = np.percentile(expression("raw", gene), 99)
            style = {"c": expression(row, gene), "cmap": "viridis", "vmin": 0, "vmax": highest}
            shown = draw(panels[line, column], f"{gene}: {title}", **style)
            figure.colorbar(shown, cax=panels[line, -1], label="log1p(counts per 10,000)")
    for axes in (panels[0, -1], panels[-1, 0]):
        axes.set_axis_off()
    marks = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in PALETTE]
    panels[-1, 0].legend(marks, LAYERS, loc="center", ncols=2, frameon=False, title="layers")
    return figure


def render(store: Store, pages: Path) -> None:
    """Write the page, the table and the picture; the same results give the same files."""
    results = {case: store.load(case)["results"] for case in CASES}
    pages.mkdir(parents=True, exist_ok=True)
    figure = plot(results, store)
    (pages / "biology.md").write_text(page(results, drawn=figure is not None), encoding="utf-8")
    long_form(results).to_csv(pages / "biology.csv", index=False, float_format="%.6g", lineterminator="\n")
    if figure is not None:
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
        # A palette makes the file a third as large.
        picture = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
        picture.save(pages / "biology.png", optimize=True)
    print(f"written to {pages}: biology.md, biology.csv" + (", biology.png" if figure is not None else ""))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"sections": SECTIONS, "methods": tuple(ROWS)}
    for option, choices in names.items():
        metavar, known = option[:-1].upper(), ", ".join(choices)
        parser.add_argument(
            f"--{option}", nargs="+", choices=choices, default=choices, metavar=metavar, help=f"only these of: {known}"
        )
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=(0, 1, 2), default=(0,), metavar="SEED", help="default: 0"
    )
    parser.add_argument("--render", action="store_true", help="run nothing, only write the pages")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "biology", metavar="RESULTS", help="where to keep results"
    )
    parser.add_argument("--pages", type=Path, default=PAGES, help="where to write (default: docs/benchmarks)")
    # Started by ourselves, in the environment of the method.
    parser.add_argument("--fit", nargs=3, help=argparse.SUPPRESS)
    parser.set_defaults(jobs=1)
    return parse_running(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore")
    options = parse(arguments)
    if options.fit:
        method, given, made = options.fit
        FITS[method](anndata.read_h5ad(given)).write_h5ad(made)
        return
    store = Store(options.out.resolve())
    if not options.render:
        with started(options) as harness:
            measure(options, harness, store)
    render(store, options.pages)


if __name__ == "__main__":
    main()
