"""Overdispersion of counts around predicted ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._tissue import Spots

FIRST_SIZE = 50.0
"""Inverse overdispersion before it is estimated: nearly Poisson."""
# The likelihood, computed at few sizes, is interpolated at many.
_SIZES = torch.logspace(-2, 3, 13)
_INTERPOLATED = torch.logspace(-2, 3, 73)
# Standard deviation of the log sizes of genes around the typical one, and rounds in which that is found.
_SPREAD, _ROUNDS = 1.0, 8
_SMALLEST_MEAN = 1e-12


class Overdispersion:
    """Inverse overdispersion ``r`` of every gene: the variance of a count with expectation ``mu`` is ``mu + mu**2 / r``.

    It is the posterior mean of ``log(r)`` on a grid, given the negative-binomial likelihood of the counts and a normal prior around
    the typical gene, which is found from all. Moments would follow the few largest counts instead.

    Parameters
    ----------
    like
        A tensor ``(n_genes,)`` on the device of the counts.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._sizes = _SIZES.to(like)
        self._likelihood = like.new_zeros(len(_SIZES), len(like))

    def add(self, mean: torch.Tensor, batch: Batch | Spots) -> None:
        """Add the observed entries of a minibatch with expected counts ``(n_spots, n_genes)``."""
        counts, mean = batch.counts, mean.clamp_min(_SMALLEST_MEAN)
        for i, size in enumerate(self._sizes):
            term = torch.lgamma(counts + size) - torch.lgamma(size) + size * size.log()
            term = term - (counts + size) * (size + mean).log() + counts * mean.log()
            self._likelihood[i] += (term * batch.observed).sum(0)

    def size(self) -> torch.Tensor:
        """Inverse overdispersion, ``(n_genes,)``."""
        logs = _INTERPOLATED.to(self._sizes).log()[:, None]
        shape = (len(logs), self._likelihood.shape[1])
        likelihood = F.interpolate(self._likelihood[None, None], shape, mode="bicubic", align_corners=True)[0, 0]
        typical = logs.new_tensor(FIRST_SIZE).log()
        for _ in range(_ROUNDS):
            log_odds = likelihood - ((logs - typical) / _SPREAD).square() / 2
            found = (torch.softmax(log_odds, dim=0) * logs).sum(0)
            typical = found.mean()
        return found.exp()
