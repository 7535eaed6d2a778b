#!/usr/bin/env python3
"""Spots that are hidden altogether: completed from their surroundings, beside means of neighbours and smooth factors.

    hidden.py [--sets SET ...] [--seeds SEED ...] [--folds N] [--patches N ...]

A tenth of the spots is hidden, one by one or in patches of 13 neighbours. The score is the share of the Poisson deviance of
their counts that is explained beyond the mean of each gene. The joint samples are scored beside a normal distribution with the
covariance of the errors in the other folds. Results go into benchmarks/results/hidden, and docs/benchmarks/hidden.md is written
from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import harness
import numpy as np
from compare import RESULTS, ROOT, Code
from report import table
from scipy.spatial import cKDTree
from scoring import Record
from sets import DENSE, QUICK
from sums import N_GENE_SETS, SET_GENES, gene_sets

from lgdist_scvi import LGDiST
from lgdist_scvi.metrics import deviance_explained

FOLDER = RESULTS / "hidden"
PAGE = ROOT / "docs" / "benchmarks" / "hidden.md"
N_FOLDS = 10
PATCH = 13
FLOOR = 0.01
"""Share of the gene means that is mixed into every prediction."""
NEIGHBOURS = (6, 18, 60)
PRIORS = (0, 0.1, 0.3, 1, 3)
"""Weights of the gene means in a mean of neighbours, in spots of the typical depth."""
N_SAMPLES = 400
SMOOTH = "spatial_factors_eb"


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


def without(train: anndata.AnnData, hidden: np.ndarray) -> anndata.AnnData:
    """The data as if some spots had not been observed."""
    seen = train.copy()
    matrix = seen.X.tolil()
    matrix[hidden] = 0
    seen.X = matrix.tocsr()
    missing = np.zeros(seen.shape, dtype=np.uint8)
    missing[hidden] = 1
    seen.layers["missing"] = missing
    depth = seen.obs["lib"].to_numpy(dtype=float)
    seen.obs.loc[seen.obs_names[hidden], "lib"] = np.median(np.delete(depth, hidden))
    return seen


def complete(seen: anndata.AnnData, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates of the hidden spots, ``(n_hidden, n_genes)``, and joint samples of them."""
    trained: list[LGDiST] = []

    class Kept(LGDiST):
        def train(self, **options: Any) -> None:
            super().train(**options)
            trained.append(self)

    rate = harness.complete(seen, Kept)[0].to_numpy(dtype=float)[hidden]
    genes = list(seen.var_names[seen.var["eval"].to_numpy()])
    samples = trained[0].sample_expression(indices=hidden, gene_list=genes, n_samples=N_SAMPLES, silent=True)
    return rate, samples.astype(float)


def explained(
    train: anndata.AnnData, hidden: np.ndarray, tuned_on: np.ndarray, peer: Callable[..., Any]
) -> tuple[Record, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of all methods on the hidden spots; counts, rates and joint samples there.

    The weight of the gene means is tuned on spots that are seen otherwise.
    """
    chosen = train.var["eval"].to_numpy()
    counts, depth = train.X[:, chosen].toarray().astype(float), train.obs["lib"].to_numpy(dtype=float)
    position = np.asarray(train.obsm["spatial"], dtype=float)
    kept = np.setdiff1d(np.arange(train.n_obs), hidden)
    gene = counts[kept].sum(0) / depth[kept].sum()

    def score(rate: np.ndarray, spots: np.ndarray = hidden) -> float:
        return deviance_explained(counts[spots], rate, depth[spots], gene, floor=FLOOR)

    found = {f"mean of {k}": score(neighbour_means(counts, depth, position, hidden, k, 0)) for k in NEIGHBOURS}
    both = np.union1d(hidden, tuned_on)
    inside = np.isin(both, tuned_on)
    grid = [(k, prior) for k in NEIGHBOURS for prior in PRIORS]
    best = max(grid, key=lambda one: score(neighbour_means(counts, depth, position, both, *one)[inside], both[inside]))
    found["tuned mean"] = score(neighbour_means(counts, depth, position, hidden, *best))
    seen = without(train, hidden)
    smooth = seen.copy()
    del smooth.layers["missing"]
    smooth.obs.loc[smooth.obs_names[hidden], "lib"] = 1
    found[SMOOTH] = score(peer(smooth, None)[0][hidden])
    rate, samples = complete(seen, hidden)
    found["lgdist"] = score(rate)
    return found, counts[hidden], rate * depth[hidden, None], samples * depth[hidden, None]


def gaussian(errors: list[tuple[np.ndarray, np.ndarray]], expected: np.ndarray, seed: int) -> np.ndarray:
    """Samples around expected counts whose logs have the covariance of the errors of others beyond the noise of counting."""
    excess = sum((y - mu).T @ (y - mu) - np.diag(mu.sum(0)) for y, mu in errors)
    # In the log, and of the genes that are rare in all folds no more than can be said of them.
    ratio = excess / sum(mu.T @ mu for _, mu in errors)
    log = np.log1p(ratio.clip(-0.5, 3))
    draws = np.random.default_rng(seed).standard_normal((N_SAMPLES, *expected.shape))
    values, vectors = np.linalg.eigh(log)
    deviation = draws * np.sqrt(values.clip(min=0)) @ vectors.T
    return expected * np.exp(deviation - deviation.var(axis=0) / 2)


def joint(counts: np.ndarray, samples: np.ndarray, sets: list[np.ndarray], seed: int) -> Record:
    """Scores of samples of the expected counts, ``(n_samples, n_spots, n_genes)``; lower is better but for the coverage.

    The energy score is of square roots of counts. The log score is that of a normal distribution with the mean and covariance of
    the samples and the noise of counting, per spot. The CRPS is of sums over sets of genes, in units of their standard deviation.
    """
    random = np.random.default_rng(seed)
    repeated = random.poisson(samples)
    root, half = np.sqrt(repeated), len(samples) // 2
    between = np.linalg.norm(root[:half] - root[half:], axis=-1).mean(0)
    energy = np.linalg.norm(root - np.sqrt(counts), axis=-1).mean(0) - between / 2
    mean, log = samples.mean(0), 0.0
    for spot, seen in enumerate(counts):
        covariance = np.cov(samples[:, spot].T) + np.diag(mean[spot] + 1e-3)
        away = seen - mean[spot]
        log += (np.linalg.slogdet(covariance)[1] + away @ np.linalg.solve(covariance, away)) / 2
    crps, inside = [], []
    for genes in sets:
        sums, seen = np.sort(repeated[..., genes].sum(-1), axis=0), counts[:, genes].sum(-1)
        shuffled = random.permuted(sums, axis=0)
        scale = np.sqrt(seen.mean() + 1)
        crps.append((np.abs(sums - seen).mean() - np.abs(sums - shuffled).mean() / 2) / scale)
        below, equal = (sums < seen).mean(0), (sums == seen).mean(0)
        inside.append((np.abs(below + random.random(len(seen)) * equal - 0.5) <= 0.475).mean())
    return {
        "energy": float(energy.mean()),
        "log": float(log / len(counts)),
        "crps": float(np.mean(crps)),
        "coverage": float(np.mean(inside[:-1])),
        "coverage_panel": float(inside[-1]),
    }


def run(train: anndata.AnnData, patch: int, seed: int, n_folds: int, peer: Callable[..., Any]) -> Record:
    """Scores of all folds."""
    parts = folds(np.asarray(train.obsm["spatial"], dtype=float), patch, seed)
    scores, kept = [], []
    for fold in range(n_folds):
        score, *values = explained(train, parts[fold], parts[-1 - fold], peer)
        scores.append(score)
        kept.append(values)
        print(f"  fold {fold}", {name: round(value, 4) for name, value in score.items()}, flush=True)
    chosen = train.X[:, train.var["eval"].to_numpy()].toarray()
    rate = chosen / train.obs["lib"].to_numpy()[:, None]
    sets = [*gene_sets(rate, np.random.default_rng(0)), np.arange(rate.shape[1])]
    both: dict[str, list[Record]] = {"lgdist": [], "normal": []}
    for fold, (counts, expected, samples) in enumerate(kept):
        errors = [(y, mu) for other, (y, mu, _) in enumerate(kept) if other != fold]
        both["lgdist"].append(joint(counts, samples, sets, fold))
        both["normal"].append(joint(counts, gaussian(errors, expected, fold), sets, fold))
    return {"explained": scores, "joint": both}


def page() -> str:
    """The scores of every set, with the mean over folds and seeds."""
    scores: dict[tuple[str, int], list[Record]] = defaultdict(list)
    samples: dict[tuple[str, int], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    commits, seeds = set(), set()
    for path in sorted(FOLDER.glob("*.json")):
        record = json.loads(path.read_text())
        key = record["set"], record["patch"]
        commits.add(f"`{record['commit']}`")
        seeds.add(record["seed"])
        scores[key] += record["explained"]
        for name, found in record["joint"].items():
            samples[key][name] += found
    lines = [INTRODUCTION, f"Seeds {sorted(seeds)}, measured at {' and '.join(sorted(commits))}.", ""]
    for patch, title in ((1, "Single spots"), (PATCH, f"Patches of {PATCH} spots")):
        rows, joint_rows = [], []
        for name in DENSE:
            if (name, patch) not in scores:
                continue
            means = {m: float(np.mean([s[m] for s in scores[name, patch]])) for m in scores[name, patch][0]}
            best = max(value for method, value in means.items() if method != "lgdist")
            values = [f"{value:.4f}" for value in means.values()]
            rows.append([DENSE[name].title, *values, f"{means['lgdist'] - best:+.4f}", str(len(scores[name, patch]))])
            for method, label in (("lgdist", "joint samples"), ("normal", "normal, covariance of errors")):
                kept = samples[name, patch][method]
                measured = [np.mean([one[score] for one in kept]) for score in ("energy", "crps", "log")]
                coverage = [100 * np.mean([one[score] for one in kept]) for score in ("coverage", "coverage_panel")]
                joint_rows.append(
                    [DENSE[name].title, label, *(f"{v:.3f}" for v in measured), *(f"{v:.1f}" for v in coverage)]
                )
        if rows:
            head = ["section", *means, "LGDiST less the best other", "folds"]
            lines += [f"## {title}", "", *table(head, rows), ""]
            head = [
                "section",
                "samples",
                "energy score",
                "CRPS of sums",
                "log score",
                "95% of gene sets, %",
                "95% of panel totals, %",
            ]
            lines += [*table(head, joint_rows), ""]
    return "\n".join(lines)


INTRODUCTION = f"""# Hidden spots

Written by `benchmarks/hidden.py`. A tenth of the spots of a section is hidden, in folds: single spots, or patches of {PATCH} neighbours.
All methods see the positions and depths of the hidden spots and nothing else of them; no image is used. The score is `d2`, the share of the
Poisson deviance of the counts of 128 genes that a method explains beyond the mean of each gene, averaged over folds; higher is better. The
peers are means of the nearest spots that are seen, a mean whose width and weight of the gene means are tuned on other spots, and smooth factors
(`{SMOOTH}`). The second table scores the [joint samples](../method.md#joint-samples), beside a normal distribution of the log rates whose
covariance is that of the errors in the other folds, around the same means. Energy score, CRPS (of {N_GENE_SETS} sums of {SET_GENES} genes and of all, in units of their
standard deviation) and log score (of the normal distribution with the same mean and covariance, noise of counting included) are better when
lower.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=DENSE, default=list(QUICK), metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--folds", type=int, default=5, help="folds of ten that are hidden (default: %(default)s)")
    parser.add_argument("--patches", nargs="+", type=int, default=[1, PATCH], help="spots hidden together")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of bench/ and data/")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    shared = options.shared.resolve()
    sys.path.insert(0, str(shared / "bench"))
    FOLDER.mkdir(exist_ok=True)
    if not options.render:
        import completion
        import methods

        code = Code(dirty=False)
        if code.changed:
            sys.exit("the model has changes that are not committed: commit them")
        for name in options.sets:
            data = completion.load(",".join(str(shared / "data" / file) for file in DENSE[name].files))
            for seed in options.seeds:
                train, _ = completion.split_thinned(data, seed, 1.0)
                for patch in options.patches:
                    print(name, f"patches of {patch}", f"seed {seed}", flush=True)
                    record = run(train, patch, seed, options.folds, methods.METHODS[SMOOTH])
                    record |= {"set": name, "patch": patch, "seed": seed, "commit": code.commit}
                    path = FOLDER / f"{name}_patch{patch}_seed{seed}.json"
                    path.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
