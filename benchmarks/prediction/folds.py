"""Training on some sections and the scores on others that were never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import anndata
import numpy as np
from imaged import LIBRARY
from numpy.typing import NDArray

from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.metrics import deviance_explained, gene_pearson, masked_mse

from .sections import Floats, Predictor, Section
from .targets import chosen_genes, log_values, measured, target_genes

# Sections that are left out together: one at a time, and of the olfactory bulb one individual at a time.
FOLDS = {
    "her2": {f"C{i}": (f"C{i}",) for i in range(2, 7)},
    "mob": {"MOB1+2": ("MOB1", "MOB2"), "MOB3+4": ("MOB3", "MOB4")},
}


@dataclass(frozen=True, eq=False)
class Fold:
    """Sections to learn from, and of the others what a photograph shows."""

    panel: anndata.AnnData
    """Training spots, with the counts of target and context genes."""
    unseen: list[Section]

    @cached_property
    def genes(self) -> list[str]:
        return target_genes(self.panel)

    @cached_property
    def counts(self) -> Floats:
        return measured(self.panel, self.genes)

    @cached_property
    def depth(self) -> Floats:
        return self.panel.obs["total_counts"].to_numpy(dtype=np.float64)

    @cached_property
    def gene_means(self) -> Floats:
        """Share of each gene in the depth."""
        return self.counts.sum(axis=0) / self.depth.sum()


def split(adata: anndata.AnnData, test: Sequence[str]) -> Fold:
    """Leave sections out; nothing of their counts goes into the fold."""
    out = adata.obs[LIBRARY].isin(test).to_numpy()
    return Fold(chosen_genes(adata[~out].copy()), sections(adata[out]))


def sections(
    adata: anndata.AnnData, values: Floats | None = None, seen: NDArray[np.bool_] | None = None
) -> list[Section]:
    """Sections in the order of their first spots, with what is to be learnt of them."""
    libraries = adata.obs[LIBRARY].to_numpy()
    found = []
    for name in dict.fromkeys(libraries):
        rows = libraries == name
        learnt = (None, None) if values is None else (values[rows], seen[rows])
        found.append(Section(name, adata.obsm["X_image"][rows], adata.obsm["spatial"][rows], *learnt))
    return found


def predictions(
    fold: Fold, predictor: Predictor, values: Floats, seen: NDArray[np.bool_]
) -> tuple[dict[str, Floats], Floats]:
    """Log values predicted for the sections never seen, and the factor of each gene that turns them into rates.

    The exponential of a mean log value is not the mean, so of each gene the counts that are expected in the training
    sections are made to add up to those that are there.
    """
    training = sections(fold.panel, values, seen)
    predictor.fit(training)
    libraries = fold.panel.obs[LIBRARY].to_numpy()
    expected = np.zeros(len(fold.genes))
    for section in training:
        depth = fold.depth[libraries == section.name, None]
        expected += (rates(predictor.predict(section)) * depth).sum(axis=0)
    total = fold.counts.sum(axis=0)
    factors = np.divide(total, expected, out=np.zeros_like(total), where=expected > 0)
    return {section.name: predictor.predict(section) for section in fold.unseen}, factors


def rates(predicted: Floats) -> Floats:
    """Shares of the depth that log values stand for."""
    return np.maximum(np.expm1(predicted), 0) / TARGET_SUM


def scores(predicted: Floats, factors: Floats, fold: Fold, counts: Floats, depth: Floats) -> dict[str, float]:
    """Scores on the measured counts of the target genes of a section.

    ``mse`` and ``pearson``, the mean over genes, are those of papers: log values of detected entries. ``d2`` is of all
    entries, zeros included.
    """
    measured_values, detected = log_values(counts, depth), counts > 0
    return {
        "mse": masked_mse(predicted, measured_values, detected),
        "pearson": float(np.nanmean(gene_pearson(predicted, measured_values, detected))),
        "d2": deviance_explained(counts, rates(predicted) * factors, depth, fold.gene_means),
    }
