"""The mean of what network and field say, and what it loses of their totals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ._posterior import Prediction

TINY = 1e-12
"""Smallest share of the depth of which the logarithm is taken."""
# Of the weights: where one has nearly all, what the two disagree in is of little consequence and not known.
_SMALLEST_PRODUCT = 0.1


def geometric_mean(network: torch.Tensor, field: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean in the log, with this weight of the field."""
    return torch.exp((1 - weight) * network.clamp_min(TINY).log() + weight * field.clamp_min(TINY).log())


class Disagreement:
    """Square of the log ratio of the field's rate to the network's that is expected of each gene.

    A geometric mean is below the arithmetic one by half of this times the product of the weights, in the log. The loss is largest in
    rare genes, on which network and field agree least. The square is the one with which the total of the mean is that of both, of which
    all genes together make what was counted: so it may be below 0.

    Parameters
    ----------
    like
        A tensor ``(n_genes,)`` on the device of the predictions.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._counted, self._geometric, self._arithmetic, self._products = (torch.zeros_like(like) for _ in range(4))

    def add(self, prediction: Prediction) -> None:
        """Add a prediction of all genes for a minibatch, where its entries are visible."""
        network, field, weight, batch = prediction.network, prediction.field, prediction.weight, prediction.batch
        seen = batch.observed * batch.depth[:, None]
        mean = seen * geometric_mean(network, field, weight)
        self._counted += (batch.observed * batch.counts).sum(0)
        self._geometric += mean.sum(0)
        self._products += (mean * weight * (1 - weight)).sum(0)
        self._arithmetic += (seen * ((1 - weight) * network + weight * field)).sum(0)

    def square(self) -> torch.Tensor:
        """The square, ``(n_genes,)``."""
        geometric, arithmetic = self._geometric.clamp_min(TINY), self._arithmetic.clamp_min(TINY)
        product = (self._products / geometric).clamp_min(_SMALLEST_PRODUCT)
        found = 2 * ((arithmetic / geometric).log() + (self._counted.sum() / arithmetic.sum()).log()) / product
        return torch.where((self._geometric > TINY) & (self._counted.sum() > 0), found, 0)
