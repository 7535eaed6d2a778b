"""What spots with similar codes say of a gene beyond the latent field, which is linear in the codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi.data._similar import CodeSpace, Comparison, SimilarSpots, shrunk
from lgdist_scvi.data._tissue import Spots

from ._dispersion import Overdispersion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lgdist_scvi.data._tissue import Tissue
    from lgdist_scvi.data._view import SpotView

    from ._field import LatentField, Solved

REFERENCE_ENTRIES = 1 << 24
"""Maximum number of entries that are compared with what is expected of them."""


class References:
    """Spots whose counts are compared with what the field expects, which is collected while the codes are solved.

    Parameters
    ----------
    view
        Visible counts.
    rows
        Spots whose codes are solved, ``(n_rows,)``.
    left_out
        For each part of the codes, True for the genes of which they know nothing, ``(n_genes,)``; None if they know all.
    """

    def __init__(self, view: SpotView, rows: NDArray[np.int64], left_out: list[torch.Tensor | None]) -> None:
        rows, most = rows[view.counts.getnnz(axis=1)[rows] > 0], max(1, REFERENCE_ENTRIES // view.n_genes)
        if len(rows) > most:
            # The same ones every time, or results would differ from call to call.
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
        self.rows = rows
        self._row_of = np.full(view.n_spots, -1)
        self._row_of[rows] = np.arange(len(rows))
        every = torch.arange(view.n_genes)
        self._genes = [every if genes is None else every[genes.cpu()] for genes in left_out]
        self._expected = [torch.zeros(len(rows) + 1, len(genes)) for genes in self._genes]

    def add(self, field: LatentField, tissue: Tissue, core: NDArray[np.int64], solved: Solved, part: int) -> None:
        """Add what is expected in the core of a tissue, given the codes of one part."""
        row = torch.full((tissue.n_spots,), -1)
        row[torch.from_numpy(core)] = torch.from_numpy(self._row_of[tissue.rows[core]])
        genes, covariance = self._genes[part].to(solved.codes.device), solved.precision.local_covariance
        for place, spots in tissue.blocks():
            expected = field.expected(spots, solved.codes[place], covariance[place], genes).cpu()
            self._expected[part][row[place][row[place] >= 0]] = expected[row[place] >= 0]

    def comparisons(self, view: SpotView) -> list[Comparison]:
        """What was counted, beside what is expected given the codes of each part."""
        counts = torch.zeros(len(self.rows) + 1, view.n_genes)
        counts[:-1] = torch.from_numpy(view.counts[self.rows].toarray())
        parts = enumerate(zip(self._genes, self._expected, strict=True))
        # There may be fewer genes than folds.
        return [Comparison(part, genes, counts[:, genes], expected) for part, (genes, expected) in parts if len(genes)]


def similar_spots(
    view: SpotView, field: LatentField, share: torch.Tensor, references: list[References]
) -> SimilarSpots | None:
    """The spots similar to each by their codes; None where no spot has counts.

    Parameters
    ----------
    view
        Visible counts, with codes.
    field
        Fitted field.
    share
        Expected share of each gene in the depth, ``(n_genes,)``.
    references
        For the codes from all visible entries, and, if there are any, for those without a fold of the genes.
    """
    if not all(len(found.rows) for found in references):
        return None
    # Distances are those of the expected log rates, weighted by abundance.
    values, vectors = torch.linalg.eigh(field.loadings.T @ (share[:, None] * field.loadings))
    scale = (vectors * values.clamp_min(0).sqrt()).cpu().numpy().astype(np.float64)
    parts = view.field[:, :1], view.field[:, 1:]
    kinds = [
        (CodeSpace(codes, view.wide, view.section, found.rows, scale), found.comparisons(view))
        for codes, found in zip(parts, references, strict=False)
    ]
    return SimilarSpots(kinds, field.similarity.cpu())


@torch.no_grad()
def fit_similarity(field: LatentField, similar: SimilarSpots, rows: NDArray[np.int64]) -> None:
    """Learn how much the ratio of counted to expected differs between spots, gene by gene.

    Parameters
    ----------
    field
        Changed in place.
    similar
        Similar spots, also by codes that leave out folds of the genes.
    rows
        Spots to learn from, ``(n_rows,)``.
    """
    log_ratio = torch.zeros(())
    sums = similar.sums(rows, kind=1)
    for i in reversed(range(len(sums))):
        counted, expected = sums[i, 0], sums[i, 1] * log_ratio.exp()
        found = Overdispersion(field.level.cpu())
        found.add(expected, Spots(counted, torch.ones_like(counted, dtype=torch.bool), counted.sum(1)))
        pseudo_counts = found.size()
        log_ratio = log_ratio + shrunk(counted, expected, pseudo_counts)
        field.similarity[i] = pseudo_counts
    similar.pseudo_counts = field.similarity.cpu()
