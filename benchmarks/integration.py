#!/usr/bin/env python3
"""Compare representations of several sections: how well the sections mix, and what is left of what each shows by itself.

    integration.py [--sets SET ...] [--methods METHOD ...] [--peer-python PYTHON] [--render]

Measures are those of scib-metrics, in the environment of the peers. What is kept in RESULTS/SET.json is not made again
(delete the file to begin anew).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import anndata
import domains
import numpy as np
from domains import ROOT, SHARED, Floats
from numpy.typing import NDArray

RESULTS = ROOT / "benchmarks" / "results" / "integration"
PAGE = ROOT / "docs" / "benchmarks" / "integration.md"
SETS = (domains.TOGETHER, "hippo_all", "mob_all", "her2_all")
OURS = {
    "niche": "niches as they are",
    "niche_aligned": "niches, `aligned=True`",
    "state": "states as they are",
    "state_aligned": "states, `aligned=True`",
}
PEERS = {
    "raw_pca": "principal components of log values",
    "raw_pca_harmony": "the same, aligned by Harmony",
    "smoothed_pca": "the same of means of 19 spots",
    "smoothed_pca_harmony": "the same, aligned by Harmony",
    "scvi_latent": "scVI, the section as batch",
}
N_NEIGHBORS = 90
N_CLUSTERS = 8
MEASURES = {
    "mixing": "mixing",
    "own clusters": "own clusters kept",
    "layers by k-means": "layers by k-means",
    "layers apart": "layers apart",
    "layers mixed": "layers in one another",
}

INTRODUCTION = f"""\
# Several sections

Sections that are clustered together differ by how they were prepared. How well do they mix in a representation, and is what each
section shows by itself still there? Every method gets the same spots and the genes that the panels of all sections share. Written by
`make benchmark-integration`; the measures are those of `scib-metrics`.

| column | what it is |
| --- | --- |
| mixing | integration LISI, 0 to 1: 1 where the {N_NEIGHBORS} most similar spots are of all sections alike |
| own clusters kept | for each section by itself, agreement (normalised mutual information) of {N_CLUSTERS} k-means clusters with those of smoothed principal components of that section alone, which favours these; the mean |
| layers by k-means | agreement (the same) of k-means clusters over all sections with the annotated layers |
| layers apart | silhouette of the layers, 0 to 1, higher is better |
| layers in one another | 1 minus cell-type LISI: 0 where the most similar spots are of the same layer |

Layers are annotated in the cortex only. Alignment does not touch completed expression, so scores of held-out entries are the same to the
bit with and without it (`tests/model/test_latent.py`). High mixing alone is no merit: sections that differ should not mix. Niches
cannot mix far: most of the spots that are similar to a niche are those beside it, which share its surroundings.

**In short.** `aligned=True` mixes sections more, and states and niches keep what each section shows. Harmony mixes more, and loses a little. Of a
section's own clusters states keep about as much as scVI or more, with about the mixing of scVI once aligned in three of the tissues, and
less in the cortex; niches keep more than states, and less than smoothed principal components, by whose clusters they are judged here.
Aligned niches show the layers of the cortex about as well as smoothed components aligned by Harmony.
"""


def read(name: str) -> anndata.AnnData:
    """All sections of a set, with the genes of all panels, far apart."""
    if name == domains.TOGETHER:
        return domains.read(name)
    from biology import definitions
    from sets import SETS as FILES

    shared, views = definitions(SHARED / "bench"), {}
    for file in FILES[name].files:
        whole = shared.load(SHARED / "data" / file)
        views[Path(file).stem] = shared.training_view(whole, whole.X.tocsr(), None, "B", seed=0)
    return domains.together(views)


def ours(view: anndata.AnnData) -> dict[str, Floats]:
    """States and niches, aligned and not."""
    model, made = domains.trained(view), {}
    for end, aligned in (("", False), ("_aligned", True)):
        model.add_latent_representation(aligned=aligned, silent=True)
        made |= {f"niche{end}": view.obsm["X_lgdist_niche"], f"state{end}": view.obsm["X_lgdist"]}
    return made


def peer(name: str, view: anndata.AnnData) -> Floats:
    """Representation of a peer; runs in its environment."""
    codes = domains.METHODS[name.removesuffix("_harmony")](view)
    return domains.harmony(codes, view) if name.endswith("_harmony") else codes


def clusters(codes: Floats) -> NDArray:
    from sklearn.cluster import KMeans

    return KMeans(N_CLUSTERS, n_init=10, random_state=0).fit_predict(codes)


def scores(codes: Floats, view: anndata.AnnData) -> dict[str, float]:
    """All measures; runs in the environment of the peers."""
    import scib_metrics
    from scib_metrics.nearest_neighbors import pynndescent
    from sklearn.metrics import normalized_mutual_info_score as agreement

    codes, section = np.asarray(codes, dtype=np.float32), view.obs["slide"].to_numpy()
    near = pynndescent(codes, N_NEIGHBORS)
    found = {"mixing": float(scib_metrics.ilisi_knn(near, section))}
    alone = {one: clusters(domains.smoothed_pca(view[section == one].copy())) for one in np.unique(section)}
    kept = [agreement(labels, clusters(codes[section == one])) for one, labels in alone.items()]
    found["own clusters"] = float(np.mean(kept))
    if "layer" in view.obs:
        labels = view.obs["layer"].to_numpy()
        known = ~np.isin(labels, domains.UNKNOWN)
        labels, near = labels[known], pynndescent(codes[known], N_NEIGHBORS)
        found["layers by k-means"] = float(scib_metrics.nmi_ari_cluster_labels_kmeans(codes[known], labels)["nmi"])
        found["layers apart"] = float(scib_metrics.silhouette_label(codes[known], labels))
        found["layers mixed"] = 1 - float(scib_metrics.clisi_knn(near, labels))
    return found


def in_peers(python: str | None, *arguments: str) -> None:
    subprocess.run([python or sys.executable, __file__, *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(options: argparse.Namespace) -> None:
    for name in options.sets:
        store = options.out / f"{name}.json"
        results = json.loads(store.read_text()) if store.exists() else {}
        wanted = [method for method in options.methods if method not in results]
        if not wanted:
            continue
        view = read(name)
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "given.h5ad", Path(folder) / "codes.npy"
            view.write_h5ad(source)
            made = ours(view.copy()) if set(wanted) & set(OURS) else {}
            for method in wanted:
                if method in OURS:
                    np.save(target, made[method])
                else:
                    in_peers(options.peer_python, "--represent", method, str(source), str(target))
                table = Path(folder) / "scores.json"
                in_peers(options.peer_python, "--score", str(target), str(source), str(table))
                results[method] = json.loads(table.read_text())
                store.parent.mkdir(parents=True, exist_ok=True)
                store.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
                print(name, method, results[method], flush=True)


def page(folder: Path) -> str:
    from report import table
    from sets import SETS as FILES

    parts = [INTRODUCTION]
    for name in SETS:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        rows = [(method, title) for method, title in (OURS | PEERS).items() if method in results]
        measures = {key: title for key, title in MEASURES.items() if key in results[rows[0][0]]}
        lines = [[title, *(f"{results[method][key]:.3f}" for key in measures)] for method, title in rows]
        parts.append("\n".join([f"## {FILES[name].title}\n", *table(["", *measures.values()], lines)]))
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, metavar="SET")
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS], metavar="METHOD")
    parser.add_argument("--peer-python", help="Python of an environment with scib-metrics, harmonypy and scvi-tools")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    # In the environment of the peers.
    parser.add_argument("--represent", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.represent:
        method, source, target = options.represent
        np.save(target, peer(method, anndata.read_h5ad(source)))
    elif options.score:
        codes, source, target = options.score
        Path(target).write_text(json.dumps(scores(np.load(codes), anndata.read_h5ad(source))))
    else:
        if not options.render:
            measure(options)
        options.page.write_text(page(options.out), encoding="utf-8")


if __name__ == "__main__":
    main()
