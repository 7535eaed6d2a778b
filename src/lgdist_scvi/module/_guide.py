"""What the surroundings and the other genes expect of a gene in an area whose own counts of it are not looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ._field_fit import LONGEST_STEP
from ._folds import N_FOLDS, gene_folds
from ._markov import inverse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._lgdist import LGDiSTModule

SWEEPS = 7
_BLOCK_SPOTS = 2048
_PSEUDO_COUNT = 0.5
_LOWEST = -25.0


class Guide:
    """Regression of each gene on codes that are solved without its fold of the genes, in some spots, read elsewhere.

    Neither codes nor coefficients know the counts of the gene in the spots outside `rows`. The level of the gene is fitted too, so
    that the coefficients depend on how its counts are spread over the rows alone and not on their total.

    Parameters
    ----------
    module
        Module with a fitted field.
    view
        What may be seen, with codes of all folds (:func:`~lgdist_scvi.module._field_codes.solve_field`).
    rows
        Spots to learn from, ``(n_rows,)``.
    """

    def __init__(self, module: LGDiSTModule, view: SpotView, rows: NDArray[np.int64]) -> None:
        assert module.field is not None
        self._field, self._view, self._device = module.field, view, module.device
        self._folds = [(gene_folds(view.n_genes) == fold).nonzero()[:, 0].to(module.device) for fold in range(N_FOLDS)]
        # The precision of the loadings that their own sizes suggest.
        row, col = torch.tril_indices(self._field.n_factors, self._field.n_factors)
        squares = self._field.products[:, (row == col).to(module.device)].sum(dim=0)
        penalty = view.n_genes / squares.clamp_min(1e-6)
        self._penalty = torch.diag(torch.cat([penalty.new_full((1,), 1e-6), penalty]))
        self._coefficients = [self._fitted(fold, rows) for fold in range(N_FOLDS)]

    @torch.no_grad()
    def rates(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected mean share of the depth in some spots, ``(n_genes,)``."""
        expected = torch.zeros(self._view.n_genes, dtype=torch.float64, device=self._device)
        for fold, genes in enumerate(self._folds):
            for _, codes, depth in self._blocks(fold, rows):
                expected[genes] += (self._rate(codes, self._coefficients[fold]) * depth).sum(0).double()
        return expected.cpu().numpy() / self._view.depth[rows].sum(dtype=np.float64)

    @torch.no_grad()
    def _fitted(self, fold: int, rows: NDArray[np.int64]) -> torch.Tensor:
        """Coefficients of the genes of a fold, the level first, by Newton steps."""
        genes = self._folds[fold]
        size = self._field.dispersion[genes]
        coefficients = size.new_zeros(len(genes), len(self._penalty))
        lower = torch.tril_indices(len(self._penalty), len(self._penalty), device=self._device)
        columns = genes.cpu().numpy()
        counts, hidden = self._view.counts[rows][:, columns], self._view.hidden.of(rows)

        def blocks() -> Iterator[tuple[torch.Tensor, ...]]:
            for place, codes, depth in self._blocks(fold, rows):
                arrays = counts[place].toarray(), ~hidden[np.arange(place.start, place.stop)][:, columns]
                yield codes, depth, *(torch.from_numpy(array).to(self._device) for array in arrays)

        counted, exposed = (size.new_full((len(genes),), _PSEUDO_COUNT) for _ in range(2))
        for _, depth, seen, visible in blocks():
            counted += seen.sum(0)
            exposed += (depth * visible).sum(0)
        coefficients[:, 0] = (counted / exposed).log()
        for _ in range(SWEEPS):
            information = size.new_zeros(len(genes), lower.shape[1])
            target = -coefficients @ self._penalty
            for codes, depth, seen, visible in blocks():
                mean = self._rate(codes, coefficients) * depth * visible
                certain = size / (size + mean)
                products = (codes[:, :, None] * codes[:, None])[:, lower[0], lower[1]]
                information += (mean * certain).T @ products
                target += ((seen - mean) * certain).T @ codes
            matrix = size.new_empty(len(genes), *self._penalty.shape)
            matrix[:, lower[0], lower[1]] = information
            matrix[:, lower[1], lower[0]] = information
            step = (inverse(matrix + self._penalty) @ target[..., None])[..., 0]
            coefficients += step.clamp(-LONGEST_STEP, LONGEST_STEP)
        return coefficients

    def _blocks(self, fold: int, rows: NDArray[np.int64]) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Places of some spots at a time, their codes with a one in front, and their depth."""
        for start in range(0, len(rows), _BLOCK_SPOTS):
            place = slice(start, min(start + _BLOCK_SPOTS, len(rows)))
            some = rows[place]
            arrays = np.insert(self._view.field[some, 1 + fold], 0, 1, axis=1), self._view.depth[some, None]
            codes, depth = (torch.from_numpy(array).to(self._device) for array in arrays)
            yield place, codes, depth

    @staticmethod
    def _rate(codes: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        return (codes @ coefficients.T).clamp(_LOWEST, 0).exp()
