"""The mean of what network and field say, and what it loses of their totals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ._posterior import Prediction

TINY = 1e-12
"""Smallest share of the depth of which the logarithm is taken."""
# Of the weights: where one has nearly all, what the two disagree in is of no consequence and not known.
_SMALLEST_PRODUCT = 0.01


def geometric_mean(network: torch.Tensor, field: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean in the log, with this weight of the field."""
    return torch.exp((1 - weight) * network.clamp_min(TINY).log() + weight * field.clamp_min(TINY).log())


class Totals:
    """What totals lose where network and field are averaged in the log, and how far both are from what was counted.

    A geometric mean is below the arithmetic one, most in rare genes, on which network and field agree least.

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

    def disagreement(self) -> torch.Tensor:
        """Square of the log ratio of the field's rate to the network's, ``(n_genes,)``, with which the total of each gene is that of both.

        Half of it times the product of the weights is what the logarithm of the mean loses.
        """
        geometric = self._geometric.clamp_min(TINY)
        product = (self._products / geometric).clamp_min(_SMALLEST_PRODUCT)
        return 2 * (self._arithmetic / geometric).clamp_min(1).log() / product

    def shift(self) -> torch.Tensor:
        """Log ratio of the total of all genes that was counted to that of both, one number."""
        counted, expected = self._counted.sum(), self._arithmetic.sum()
        return torch.where((counted > 0) & (expected > 0), (counted / expected.clamp_min(TINY)).log(), 0)
