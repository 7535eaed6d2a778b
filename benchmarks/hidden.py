#!/usr/bin/env python3
"""Spots that are hidden altogether: completed from their surroundings, beside means of neighbours and smooth factors.

    hidden.py [--sets SET ...] [--seeds SEED ...] [--folds N]

A tenth of the spots is hidden, one by one or in patches of 13 neighbours. The score is the share of the Poisson deviance of
their counts that is explained beyond the mean of each gene. Results go into benchmarks/results/hidden.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import harness
import numpy as np
from compare import RESULTS, ROOT
from scipy.spatial import cKDTree
from sets import DENSE, QUICK

from lgdist_scvi.metrics import deviance_explained

N_FOLDS = 10
PATCH = 13
FLOOR = 0.01
"""Share of the gene means that is mixed into every prediction."""
NEIGHBOURS = (6, 18, 60)
PRIORS = (0, 0.1, 0.3, 1, 3)
"""Weights of the gene means in a mean of neighbours, in spots of the typical depth."""


def folds(position: np.ndarray, patch: int, seed: int) -> list[np.ndarray]:
    """Spots of each fold, as single spots or in patches."""
    random, n_spots = np.random.default_rng(seed), len(position)
    fold = np.full(n_spots, -1)
    neighbours = cKDTree(position).query(position, patch)[1].reshape(n_spots, patch)
    number = 0
    for spot in random.permutation(n_spots):
        if fold[spot] < 0:
            free = neighbours[spot][fold[neighbours[spot]] < 0]
            fold[free] = number % N_FOLDS
            number += 1
    return [np.flatnonzero(fold == one) for one in range(N_FOLDS)]


def neighbour_means(
    counts: np.ndarray, depth: np.ndarray, position: np.ndarray, hidden: np.ndarray, k: int, prior: float
) -> np.ndarray:
    """Rates of hidden spots from the nearest others and the gene means."""
    kept = np.setdiff1d(np.arange(len(depth)), hidden)
    near = kept[cKDTree(position[kept]).query(position[hidden], k)[1]]
    gene, weight = counts[kept].sum(0) / depth[kept].sum(), prior * np.median(depth[kept])
    return (counts[near].sum(1) + weight * gene) / (depth[near].sum(1) + weight)[:, None]


def scores(
    train: anndata.AnnData, hidden: np.ndarray, tuned_on: np.ndarray, peer: Callable[..., Any]
) -> dict[str, float]:
    """Scores of all methods on the hidden spots; the weight of the gene means is tuned on others, which are seen otherwise."""
    chosen = train.var["eval"].to_numpy()
    counts, depth = train.X[:, chosen].toarray().astype(float), train.obs["lib"].to_numpy(dtype=float)
    position = np.asarray(train.obsm["spatial"], dtype=float)
    kept = np.setdiff1d(np.arange(train.n_obs), hidden)
    gene = counts[kept].sum(0) / depth[kept].sum()

    def score(rate: np.ndarray, spots: np.ndarray = hidden) -> float:
        return deviance_explained(counts[spots], rate, depth[spots], gene, floor=FLOOR)

    found = {}
    for k in NEIGHBOURS:
        found[f"mean of {k}"] = score(neighbour_means(counts, depth, position, hidden, k, 0))
    both = np.union1d(hidden, tuned_on)
    inside = np.isin(both, tuned_on)
    grid = [(k, prior) for k in NEIGHBOURS for prior in PRIORS]
    best = max(grid, key=lambda one: score(neighbour_means(counts, depth, position, both, *one)[inside], both[inside]))
    found["tuned mean"] = score(neighbour_means(counts, depth, position, hidden, *best))

    seen = train.copy()
    matrix = seen.X.tolil()
    matrix[hidden] = 0
    seen.X = matrix.tocsr()
    smooth = seen.copy()
    smooth.obs.loc[smooth.obs_names[hidden], "lib"] = 1
    found["spatial_factors_eb"] = score(peer(smooth, None)[0][hidden])
    missing = np.zeros(seen.shape, dtype=np.uint8)
    missing[hidden] = 1
    seen.layers["missing"] = missing
    seen.obs.loc[seen.obs_names[hidden], "lib"] = np.median(depth[kept])
    found["lgdist"] = score(harness.complete(seen)[0].to_numpy(dtype=float)[hidden])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=DENSE, default=list(QUICK), metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--folds", type=int, default=5, help="folds of ten that are hidden (default: %(default)s)")
    parser.add_argument("--patches", nargs="+", type=int, default=[1, PATCH], help="spots hidden together")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of bench/ and data/")
    options = parser.parse_args()
    shared = options.shared.resolve()
    sys.path.insert(0, str(shared / "bench"))
    import completion
    import methods

    folder = RESULTS / "hidden"
    folder.mkdir(exist_ok=True)
    for name in options.sets:
        data = completion.load(",".join(str(shared / "data" / file) for file in DENSE[name].files))
        for seed in options.seeds:
            train, _ = completion.split_thinned(data, seed, 1.0)
            for patch in options.patches:
                parts, kept = folds(np.asarray(train.obsm["spatial"], dtype=float), patch, seed), []
                for fold in range(options.folds):
                    kept.append(scores(train, parts[fold], parts[-1 - fold], methods.METHODS["spatial_factors_eb"]))
                    print(name, f"patches of {patch}", fold, {k: round(v, 4) for k, v in kept[-1].items()}, flush=True)
                (folder / f"{name}_patch{patch}_seed{seed}.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
