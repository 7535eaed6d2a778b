"""Tests between groups of spots: their level where nothing differs, and what they find where something does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from evidence_regions import smooth_clusters
from scipy import sparse, stats
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from scoring import Record

N_DECOYS, N_SWAPPED = 150, 150
N_REGIONS, LEAST_HALF = 5, 40
SIZES, N_PAIRS = (10, 20, 30, 50, 150), 4
LEVEL, SURE = 0.05, 4.0
LEAST_CHANGE_COUNTS = 50
SIMULATED = {"simulated, Poisson": 0.0, "simulated, overdispersed": 0.5}
"""Simulated tissues, and the variance of the gamma noise of their genes without a pattern."""


class Halves:
    """A section with half of its molecules given, in which some genes have no pattern.

    Decoys are Poisson distributed (or overdispersed) around the depth times one share. Of swapped genes real counts are
    exchanged, at random, between the two contiguous halves of each region, among spots of like depth.
    """

    def __init__(self, counts: NDArray, depth: NDArray, adata: anndata.AnnData, seed: int, noise: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.given = random.binomial(counts, 0.5)
        self.held_out = counts - self.given
        self.depth = (self.given.sum(axis=1) + random.binomial(depth - counts.sum(axis=1), 0.5)).astype(float)
        self.held_out_depth = depth - self.depth
        LGDiST.setup_anndata(adata, library_key="slide", size_factor_key="lib")
        self.region = smooth_clusters(adata, self.held_out, self.held_out_depth, N_REGIONS, seed)
        self.positions = np.asarray(adata.obsm["spatial"], dtype=float)
        self.second = self._second_halves()
        null = random.permutation(counts.shape[1])[: N_DECOYS + N_SWAPPED]
        self.decoy, self.swapped = np.zeros((2, counts.shape[1]), dtype=bool)
        self.decoy[null[: len(null) // 2]], self.swapped[null[len(null) // 2 :]] = True, True
        share = counts[:, self.decoy].sum(axis=0) / depth.sum()
        for part, seen in ((self.given, self.depth), (self.held_out, self.held_out_depth)):
            rate = seen[:, None] * share
            if noise:
                rate = rate * random.gamma(1 / noise, noise, rate.shape)
            part[:, self.decoy] = random.poisson(rate)
        self._swap(random)
        obs = pd.DataFrame({"lib": self.depth, "slide": "section"}, index=adata.obs_names)
        self.adata = anndata.AnnData(
            sparse.csr_matrix(self.given.astype(np.float32)),
            obs,
            adata.var[[]].copy(),
            obsm={"spatial": self.positions},
        )

    def _second_halves(self) -> NDArray[np.bool_]:
        """Spots of the farther half of their region along its longest direction."""
        second = np.zeros(len(self.region), dtype=bool)
        for one in range(N_REGIONS):
            spots = np.flatnonzero(self.region == one)
            along = PCA(1).fit_transform(self.positions[spots])[:, 0]
            second[spots] = along > np.median(along)
        return second

    def _swap(self, random: np.random.Generator) -> None:
        genes = np.flatnonzero(self.swapped)
        for one in range(N_REGIONS):
            halves = [np.flatnonzero((self.region == one) & (self.second == half)) for half in (False, True)]
            first, second = (spots[np.argsort(self.depth[spots], kind="stable")] for spots in halves)
            n = min(len(first), len(second))
            first, second = first[:n], second[:n]
            exchanged = random.random((n, len(genes))) < 0.5
            moved = [self._moved(from_, to, genes, random) for from_, to in ((second, first), (first, second))]
            for spots, counts in zip((first, second), moved, strict=True):
                kept = self.given[np.ix_(spots, genes)]
                self.given[np.ix_(spots, genes)] = np.where(exchanged, counts, kept)

    def _moved(self, from_: NDArray, to: NDArray, genes: NDArray, random: np.random.Generator) -> NDArray[np.int64]:
        """Counts of some spots as others, of other depths, would have them."""
        counts, ratio = self.given[np.ix_(from_, genes)], (self.depth[to] / self.depth[from_])[:, None]
        return random.binomial(counts, np.minimum(ratio, 1)) + random.poisson(counts * np.maximum(ratio - 1, 0))

    def nulls(self, model: LGDiST, seed: int) -> Iterator[tuple[str, NDArray, NDArray[np.bool_]]]:
        """Kinds of groups between which some genes do not differ, the group of each spot, and these genes."""
        for one in range(N_REGIONS):
            inside = self.region == one
            if inside.sum() < 2 * LEAST_HALF:
                continue
            half = np.where(inside, np.where(self.second, "b", "a"), None)
            yield "contiguous halves", half, self.decoy | self.swapped
            outside = cKDTree(self.positions[~inside]).query(self.positions)[0]
            near = np.where(inside, np.where(outside > np.median(outside[inside]), "b", "a"), None)
            if min((near == "a").sum(), (near == "b").sum()) >= LEAST_HALF:
                yield "near and far from a border", near, self.decoy
        values = model.get_completed_expression(return_numpy=True, silent=True)
        cluster = KMeans(N_REGIONS, n_init=1, random_state=seed).fit_predict(
            PCA(10, random_state=seed).fit_transform(values)
        )
        for one in range(N_REGIONS):
            if (cluster == one).sum() >= LEAST_HALF:
                yield "clusters of completed values", np.where(cluster == one, "a", "b"), self.decoy


def compare(model: LGDiST, group: NDArray, seed: int) -> pd.DataFrame:
    """Result of the test between groups a and b, in the order of the genes."""
    model.adata.obs["compared"] = pd.Categorical(group)
    table = model.differential_expression(groupby="compared", group1="a", group2="b", seed=seed, silent=True)
    return table.loc[model.adata.var_names]


def levels(model: LGDiST, halves: Halves, seed: int) -> Record:
    """Share of genes without a difference that have p below 0.05, and of tests that call one of them."""
    found: Record = {}
    for kind, group, null in halves.nulls(model, seed):
        table = compare(model, group, seed)
        p, q = table["pvals"].to_numpy(), table["pvals_adj"].to_numpy()
        for genes, name in ((halves.decoy, "decoys"), (halves.swapped, "swapped")):
            if (null & genes).any():
                entry = found.setdefault(f"{kind}, {name}", {"tests": 0, "below": 0, "false": 0, "called": 0})
                entry["tests"] += int((null & genes).sum())
                entry["below"] += int((p[null & genes] < LEVEL).sum())
                entry["false"] += int((q[null & genes] < LEVEL).sum())
                entry["called"] += int((q < LEVEL).sum())
    return found


def patches(halves: Halves, n_spots: int, random: np.random.Generator) -> Iterator[tuple[int, int, NDArray]]:
    """Compact groups of spots in two regions."""
    large = [one for one in range(N_REGIONS) if (halves.region == one).sum() >= n_spots]
    for _ in range(N_PAIRS if len(large) > 1 else 0):
        pair = random.choice(large, 2, replace=False)
        group = np.full(len(halves.region), None, dtype=object)
        for region, name in zip(pair, "ab", strict=True):
            spots = np.flatnonzero(halves.region == region)
            centre = halves.positions[random.choice(spots)]
            near = np.argsort(np.square(halves.positions[spots] - centre).sum(axis=1))[:n_spots]
            group[spots[near]] = name
        yield int(pair[0]), int(pair[1]), group


def powers(model: LGDiST, halves: Halves, seed: int) -> Record:
    """Genes found between small groups of two regions, of those that differ between the regions in the other half."""
    random, found = np.random.default_rng(seed), {}
    for n_spots in SIZES:
        parts = []
        for first, second, group in patches(halves, n_spots, random):
            table = compare(model, group, seed)
            regions = [halves.region == region for region in (first, second)]
            true = np.abs(contrast(halves, *regions)) > SURE
            true &= ~halves.decoy & ~halves.swapped
            p, q = table["pvals"].to_numpy(), table["pvals_adj"].to_numpy()
            record = {"true": int(true.sum()), "level": float((p[halves.decoy] < LEVEL).mean())}
            for name, adjusted in (("guided", q), ("counts", stats.false_discovery_control(p))):
                called = adjusted < LEVEL
                record[f"{name} power"] = float(called[true].mean()) if true.any() else np.nan
                record[f"{name} false"] = float(called[halves.decoy].sum() / max(called.sum(), 1))
            groups = [group == name for name in "ab"]
            held_out = [halves.held_out[spots].sum(axis=0) for spots in groups]
            known = (np.minimum(*held_out) >= LEAST_CHANGE_COUNTS) & ~halves.swapped & ~halves.decoy
            rates = [
                counts[known] / halves.held_out_depth[spots].sum()
                for counts, spots in zip(held_out, groups, strict=True)
            ]
            truth = np.log2(rates[0] / rates[1])
            for name, column in (("raw", "lfc_raw"), ("combined", "logfoldchanges")):
                change = table[column].to_numpy()[known]
                record[f"{name} products"] = [float((change * truth).sum()), float((change**2).sum())]
            low, high = (table[name].to_numpy()[known] for name in ("lfc_low", "lfc_high"))
            # With the noise of the held-out counts.
            std = np.hypot((high - low) / 3.92, np.sqrt(1 / held_out[0][known] + 1 / held_out[1][known]) / np.log(2))
            record["covered"] = [int((np.abs(change - truth) < 1.96 * std).sum()), int(known.sum())]
            parts.append(record)
        if parts:
            found[str(n_spots)] = parts
    return found


def contrast(halves: Halves, first: NDArray, second: NDArray) -> NDArray:
    """Standard normal scores of the difference between two regions in the molecules that were not given."""
    counts = [halves.held_out[spots].sum(axis=0) for spots in (first, second)]
    depth = [halves.held_out_depth[spots].sum() for spots in (first, second)]
    total, share = counts[0] + counts[1], depth[0] / sum(depth)
    return (counts[0] - total * share) / np.sqrt(np.maximum(total * share * (1 - share), 1e-9))


def simulated(noise: float, seed: int) -> Halves:
    """Simulated tissue of 1200 spots and 400 genes."""
    adata = simulated_tissue(1200, 400, depth=3000, seed=seed)
    counts = np.asarray(adata.layers["counts"].todense()).astype(np.int64)
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    # As if the panel were half of what was counted: new counts of decoys must not exceed the depth.
    depth = 2 * counts.sum(axis=1)
    adata.obs["slide"], adata.obs["lib"] = "section", depth.astype(float)
    return Halves(counts, depth, adata, seed, noise)


def real(data: anndata.AnnData, seed: int) -> Halves:
    """A section with its panel."""
    panel = data[:, data.var["panel"].to_numpy()].copy()
    depth = np.asarray(data.X.sum(axis=1)).ravel().astype(np.int64)
    panel.obs["lib"] = depth.astype(float)
    counts = panel.X.toarray().astype(np.int64)
    panel.X = sparse.csr_matrix(counts.astype(np.float32))
    return Halves(counts, depth, panel, seed)


def tests(halves: Halves, seed: int) -> Record:
    """Levels and powers of a model trained on the given half."""
    LGDiST.setup_anndata(halves.adata, library_key="slide", size_factor_key="lib")
    model = LGDiST(halves.adata, seed=seed)
    model.train(enable_progress_bar=False)
    return {"levels": levels(model, halves, seed), "powers": powers(model, halves, seed)}
