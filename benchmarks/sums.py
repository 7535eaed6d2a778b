"""Whether joint samples know how uncertain sums are: over neighbouring spots, layers and genes that vary together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata
import numpy as np
from scipy.spatial import cKDTree
from scoring import Record

from lgdist_scvi import LGDiST

N_SAMPLES = 200
PATCHES = (7, 19, 50)
N_PATCHES = 500
N_GENE_SETS, SET_GENES = 20, 20


def sums(model: LGDiST, train: anndata.AnnData, truth: dict[str, Any], rate: np.ndarray, levels: list[float]) -> Record:
    """Coverage and excess variance of sums of held-out molecules, by kind of sum.

    The excess variance is what the squared errors exceed the noise of counting by, and what the samples claim of it.

    Parameters
    ----------
    model
        Trained on `train`.
    train, truth
        Training molecules, with the layers of the tissue if they are known, and held-out molecules of the scored genes.
    rate
        Completed share of the depth, ``(n_spots, n_genes)``.
    levels
        Promised coverages.
    """
    genes = list(train.var_names[train.var["eval"].to_numpy()])
    drawn = model.sample_expression(gene_list=genes, n_samples=N_SAMPLES, silent=True)
    depth = truth["lib"][:, None]
    counts, expected, samples = np.asarray(truth["counts"], dtype=float), rate * depth, drawn * depth
    random = np.random.default_rng(0)
    found = {}
    for kind, groups, axis in kinds(train, rate, random):
        parts = [
            (
                counts.take(group, axis).sum(axis),
                expected.take(group, axis).sum(axis),
                samples.take(group, axis + 1).sum(axis + 1),
            )
            for group in groups
        ]
        seen, mean, around = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        # Of the molecules of one spot, genes share what was drawn.
        total = np.tile(truth["lib"], len(groups)) if axis else None
        found[kind] = verdict(seen, mean, around, levels, random, total)
    return found


def kinds(
    train: anndata.AnnData, rate: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[str, list[np.ndarray], int]]:
    """Names of the kinds of sums, what each sum of a kind is over, and whether that are spots (0) or genes (1)."""
    position = np.asarray(train.obsm["spatial"], dtype=float)
    tree = cKDTree(position)
    for size in PATCHES:
        chosen = random.permutation(train.n_obs)[:N_PATCHES]
        yield f"{size} neighbouring spots", list(tree.query(position[chosen], size)[1]), 0
    if "layer" in train.obs:
        layers = train.obs.groupby("layer", observed=True).indices.values()
        yield "layer", [rows for rows in layers if len(rows) > max(PATCHES)], 0
    yield f"{SET_GENES} genes of a spot", gene_sets(rate, random), 1


def gene_sets(rate: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Some genes, each with those that vary most together with it."""
    together = np.nan_to_num(np.corrcoef(np.log1p(1e4 * rate), rowvar=False))
    chosen = random.permutation(rate.shape[1])[:N_GENE_SETS]
    return [np.argsort(-together[gene])[:SET_GENES] for gene in chosen]


def verdict(
    seen: np.ndarray,
    mean: np.ndarray,
    around: np.ndarray,
    levels: list[float],
    random: np.random.Generator,
    total: np.ndarray | None = None,
) -> Record:
    """Coverage of sums, and their excess variance relative to that claimed.

    Parameters
    ----------
    seen, mean
        Counts and expected counts of the sums, ``(n_sums,)``.
    around
        Samples of the expected counts, ``(n_samples, n_sums)``.
    levels, random
        Promised coverages, and generator of the noise of counting.
    total
        Molecules that each sum was counted among, ``(n_sums,)``; None for so many that the noise is that of Poisson.
    """
    around = around + (mean - around.mean(axis=0))  # the samples are few, and their mean is known
    if total is None:
        repeated, noise = random.poisson(np.maximum(around, 0)), mean
    else:
        repeated = random.binomial(total.astype(int), (around / total).clip(0, 1))
        noise = mean * (1 - mean / total)
    # A count is covered as far as its own step lies in the interval.
    below, equal = (repeated < seen).mean(axis=0), (repeated == seen).mean(axis=0)
    coverage = {}
    for level in levels:
        low, high = (1 - level) / 2, (1 + level) / 2
        part = (np.minimum(below + equal, high) - np.maximum(below, low)).clip(min=0)
        inside = (below >= low) & (below <= high)
        coverage[str(level)] = float(np.where(equal > 0, part / np.maximum(equal, 1e-12), inside).mean())
    claimed = around.var(axis=0).sum()
    return {
        "coverage": coverage,
        "excess": float(((seen - mean) ** 2 - noise).sum() / claimed),
        "share": float(claimed / (claimed + noise.sum())),
        "n": int(seen.size),
    }
