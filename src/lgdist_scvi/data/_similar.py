"""What was counted in the spots whose codes are most alike, beside what the latent field expects there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

N_SIMILAR = (30, 120)
"""Numbers of the most similar spots that are looked at; the fewer are some of the more."""
DISTANCES = 1 << 24
"""Distances that are computed together."""


class Comparison(NamedTuple):
    """Counted and expected in reference spots, and which of these are similar to each spot."""

    genes: torch.Tensor
    """Numbers of the genes, ``(n_chosen,)``."""
    nearest: torch.Tensor
    """Rows of the most similar reference spots, the nearest first, ``(n_spots, n_similar)``; the last row where there is none."""
    counted: torch.Tensor
    """Visible counts of the reference spots, and a row of zeros, ``(n_reference, n_chosen)``."""
    expected: torch.Tensor
    """Expected counts of their visible entries, and a row of zeros, ``(n_reference, n_chosen)``."""

    def sums(self, rows: torch.Tensor) -> torch.Tensor:
        """Counted and expected, summed over each number of similar spots, ``(n_numbers, 2, n_rows, n_chosen)``."""
        tables = self.counted, self.expected
        sums = self.counted.new_zeros(len(N_SIMILAR), len(tables), len(rows), len(self.genes))
        nearest, done = self.nearest[rows].long(), 0
        for i, number in enumerate(N_SIMILAR):
            further = nearest[:, done:number].contiguous()
            sums[i:] += torch.stack([F.embedding_bag(further, table, mode="sum") for table in tables])
            done = number
        return sums


class SimilarSpots:
    """Log ratios of what was counted in similar spots to what is expected there.

    Parameters
    ----------
    kinds
        Comparisons of all genes by the codes from all visible entries; and, if they are needed, comparisons that together are of
        all genes, each by codes that know nothing of its genes.
    pseudo_counts
        Expected counts that the prior of a ratio is worth, for each of the :data:`N_SIMILAR`, ``(n_numbers, n_genes)``.
    """

    def __init__(self, kinds: Sequence[Sequence[Comparison]], pseudo_counts: torch.Tensor) -> None:
        self._kinds, self.pseudo_counts = kinds, pseudo_counts

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log ratios, ``(n_rows, n_kinds, n_genes)``."""
        kinds = range(len(self._kinds))
        return torch.stack([log_ratio(self.sums(rows, kind), self.pseudo_counts) for kind in kinds], dim=1).numpy()

    def sums(self, rows: NDArray[np.int64], kind: int) -> torch.Tensor:
        """Counted and expected sums by one kind of codes, ``(n_numbers, 2, n_rows, n_genes)``."""
        n_numbers, n_genes = self.pseudo_counts.shape
        sums = torch.empty(n_numbers, 2, len(rows), n_genes)
        for comparison in self._kinds[kind]:
            sums[..., comparison.genes] = comparison.sums(torch.from_numpy(rows))
        return sums


def log_ratio(sums: torch.Tensor, pseudo_counts: torch.Tensor) -> torch.Tensor:
    """Log ratios of counted to expected sums, ``(n_numbers, 2, n_rows, n_genes)``, from the most spots to the fewest."""
    found = torch.zeros(())
    for (counted, expected), pseudo in zip(sums.flip(0), pseudo_counts.flip(0), strict=True):
        found = found + shrunk(counted, expected * found.exp(), pseudo)
    return found


def shrunk(counted: torch.Tensor, expected: torch.Tensor, pseudo_counts: torch.Tensor) -> torch.Tensor:
    """Log of the gamma-Poisson posterior mean of a ratio whose prior, of mean 1, is worth these expected counts."""
    return ((counted + pseudo_counts) / (expected + pseudo_counts)).log()


def most_similar(codes: torch.Tensor, section: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Reference spots of the same section nearest to each spot, itself left out, the nearest first.

    Parameters
    ----------
    codes
        Codes in units in which distances can be compared, ``(n_spots, n_factors)``.
    section
        Section of every spot, ``(n_spots,)``.
    reference
        Numbers of the reference spots, ``(n_reference,)``.

    Returns
    -------
    Their places in `reference`, ``(n_spots, n_similar)``; its length where a section has too few.
    """
    section, reference = section.to(codes.device), reference.to(codes.device)
    n_reference, n_similar = len(reference), max(N_SIMILAR)
    step, found = max(1, DISTANCES // n_reference), []
    for start in range(0, len(codes), step):
        rows = torch.arange(start, min(start + step, len(codes)), device=codes.device)
        distance = torch.cdist(codes[rows], codes[reference])
        others = (rows[:, None] != reference) & (section[rows][:, None] == section[reference])
        length, place = torch.where(others, distance, torch.inf).topk(min(n_similar, n_reference), largest=False)
        place = torch.where(length < torch.inf, place, n_reference).int().cpu()
        found.append(F.pad(place, (0, n_similar - place.shape[1]), value=n_reference))
    return torch.cat(found)
