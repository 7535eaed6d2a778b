"""Means and standard deviations over blocks of spots, in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_ENTRIES = 1 << 19
"""Entries of a block."""


def blocks(spots: NDArray[np.int64], n_genes: int) -> list[NDArray[np.int64]]:
    """Cut the spots into blocks of bounded size."""
    return np.array_split(spots, -(-len(spots) * n_genes // BLOCK_ENTRIES))


class Moments:
    """Mean and standard deviation over the rows of blocks."""

    def __init__(self) -> None:
        self._weight: torch.Tensor | float = 0.0
        self._sum: torch.Tensor | float = 0.0
        self._square: torch.Tensor | float = 0.0

    def add(self, values: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Add the rows of a block; entries with zero `weight` are ignored."""
        # On the CPU, in double precision, which not every device has.
        values = values.to("cpu", torch.float64)
        weight = torch.ones_like(values) if weight is None else weight.to("cpu", torch.float64)
        self._weight = self._weight + weight.sum(0)
        self._sum = self._sum + (weight * values).sum(0)
        self._square = self._square + (weight * values.square()).sum(0)

    @property
    def mean(self) -> torch.Tensor:
        """Mean over the rows; 0 without any weight."""
        return torch.as_tensor(self._sum) / torch.as_tensor(self._weight).clamp_min(1)

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation over the rows, without Bessel's correction."""
        square = torch.as_tensor(self._square) / torch.as_tensor(self._weight).clamp_min(1)
        return (square - self.mean.square()).clamp_min(0).sqrt()
