"""What was counted in the spots whose codes are most alike, beside what the latent field expects there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy import sparse

N_SIMILAR = (30, 120)
"""Numbers of the most similar spots that are looked at; the fewer are some of the more."""
SURROUNDINGS = 0.7
"""Weight of the mean code around a spot beside its own, in the distance between spots."""
CACHE_BYTES = 1 << 28
"""The similar spots are kept, once found, where those of all spots take no more memory than this."""


class CodeSpace:
    """Codes of the spots, and which spots of the same section are nearest to each in them.

    Parameters
    ----------
    codes
        Codes of every part, ``(n_spots, n_parts, n_factors)``; NaN where they are not known.
    wide
        Marks the spots around each, ``(n_spots, n_spots)``.
    section
        Section of every spot, ``(n_spots,)``.
    reference
        Spots among which the nearest are sought, ``(n_reference,)``.
    scale
        Matrix by which codes become vectors whose distances can be compared, ``(n_factors, n_factors)``.
    """

    def __init__(
        self,
        codes: NDArray[np.float32],
        wide: sparse.csr_matrix,
        section: NDArray,
        reference: NDArray[np.int64],
        scale: NDArray[np.float64],
    ) -> None:
        self._codes, self._wide, self._section, self._scale = codes, wide, section, scale
        self._reference = reference
        n_spots, n_parts, _ = codes.shape
        self._place_of = np.full(n_spots, -1)
        self._place_of[reference] = np.arange(len(reference))
        self._several = len(np.unique(section)) > 1
        kept = (n_parts, n_spots if n_spots * n_parts * max(N_SIMILAR) * 4 <= CACHE_BYTES else 0)
        self._cache, self._cached = np.empty((*kept, max(N_SIMILAR)), dtype=np.int32), np.zeros(kept, dtype=bool)
        self._known = [self._places(reference, part) for part in range(n_parts)]

    def nearest(self, rows: NDArray[np.int64], part: int) -> torch.Tensor:
        """Reference spots nearest to each, without itself, the nearest first; the length of the reference where a section has too few.

        Parameters
        ----------
        rows
            Spots, ``(n_rows,)``.
        part
            Part of the codes.

        Returns
        -------
        Places in the reference, ``(n_rows, n_similar)``.
        """
        if not self._cached.size:
            return self._sought(rows, part)
        cache, cached = self._cache[part], self._cached[part]
        missing = np.unique(rows[~cached[rows]])
        cache[missing] = self._sought(missing, part).numpy()
        cached[missing] = True
        return torch.from_numpy(cache[rows]).long()

    def _sought(self, rows: NDArray[np.int64], part: int) -> torch.Tensor:
        n_similar, n_reference = max(N_SIMILAR), len(self._reference)
        # In double precision, so that the order does not depend on what else is computed with it.
        distance = torch.cdist(self._places(rows, part), self._known[part])
        own = torch.from_numpy(self._place_of[rows])
        distance[own >= 0, own[own >= 0]] = torch.inf
        if self._several:
            other = torch.from_numpy(self._section[rows][:, None] != self._section[self._reference])
            distance.masked_fill_(other, torch.inf)
        length, place = distance.topk(min(n_similar, n_reference), largest=False)
        return F.pad(
            torch.where(length < torch.inf, place, n_reference), (0, n_similar - place.shape[1]), value=n_reference
        )

    def _places(self, rows: NDArray[np.int64], part: int) -> torch.Tensor:
        codes, wide = self._codes[:, part], self._wide[rows]
        known = np.isfinite(codes[:, :1])
        around = wide @ np.where(known, codes, 0) / np.maximum(wide @ known, 1)
        own = codes[rows].astype(np.float64) @ self._scale
        return torch.from_numpy(np.concatenate([own, SURROUNDINGS * around @ self._scale], axis=1))


class Comparison(NamedTuple):
    """Counted and expected in the reference spots, of some genes."""

    part: int
    """Part of the codes that tell which spots are similar."""
    genes: torch.Tensor
    """Numbers of the genes, ``(n_chosen,)``."""
    counted: torch.Tensor
    """Visible counts, and a row of zeros, ``(n_reference, n_chosen)``."""
    expected: torch.Tensor
    """Expected counts of the visible entries, and a row of zeros, ``(n_reference, n_chosen)``."""


class SimilarSpots:
    """Log ratios of what was counted in similar spots to what is expected there.

    Parameters
    ----------
    kinds
        Codes from all visible entries, and the comparison of all genes by them; and, if they are needed, codes from which folds
        of the genes are left out, and comparisons that together are of all genes, each by codes that know nothing of its genes.
    pseudo_counts
        Expected counts that the prior of a ratio is worth, for each of the :data:`N_SIMILAR`, ``(n_numbers, n_genes)``.
    """

    def __init__(self, kinds: Sequence[tuple[CodeSpace, Sequence[Comparison]]], pseudo_counts: torch.Tensor) -> None:
        self._kinds, self.pseudo_counts = kinds, pseudo_counts

    def totals(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Counted and expected in all reference spots, by the codes from all visible entries, each ``(n_genes,)``."""
        ((_, (comparison,)), *_) = self._kinds
        return comparison.counted.sum(0), comparison.expected.sum(0)

    def of(self, rows: NDArray[np.int64], *, folds: bool) -> NDArray[np.float32]:
        """Log ratios by the codes from all visible entries, with `folds` also by the others, ``(n_rows, n_kinds, n_genes)``."""
        kinds = range(1 + folds)
        return torch.stack([log_ratio(self.sums(rows, kind), self.pseudo_counts) for kind in kinds], dim=1).numpy()

    def sums(self, rows: NDArray[np.int64], kind: int) -> torch.Tensor:
        """Counted and expected, summed over each number of similar spots, ``(n_numbers, 2, n_rows, n_genes)``."""
        n_numbers, n_genes = self.pseudo_counts.shape
        sums = torch.zeros(n_numbers, 2, len(rows), n_genes)
        space, comparisons = self._kinds[kind]
        for part, genes, *tables in comparisons:
            nearest, done = space.nearest(rows, part), 0
            for i, number in enumerate(N_SIMILAR):
                further = nearest[:, done:number].contiguous()
                found = torch.stack([F.embedding_bag(further, table, mode="sum") for table in tables])
                sums[i:, :, :, genes] += found
                done = number
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
