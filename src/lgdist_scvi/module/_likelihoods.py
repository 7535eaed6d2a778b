"""Likelihoods by name: the loss of a prediction, the rate it means, and what an entry's own count adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.distributions import NegativeBinomial
from torch import nn

from lgdist_scvi._constants import TARGET_SUM

from ._normalisation import log_normalise

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch

    from ._autoencoder import Rates

_LOG_SIZE_RANGE = (-4.0, 8.0)


class LogLikelihood(nn.Module):
    """Squared error of the log values of detected entries, as published: zeros tell nothing.

    What follows from a rate is the same for all likelihoods: an expected count is gamma distributed around its
    prediction, and a count is Poisson distributed around the expected one (:cite:p:`greenwood1920inquiry`).

    Parameters
    ----------
    n_genes
        Genes per spot.
    """

    zeros_count = False
    """Whether an observed zero is evidence, so that zeros cannot be taken for missing and a latent field of counts can
    stand beside the network."""

    def __init__(self, n_genes: int) -> None:
        super().__init__()

    def loss(self, batch: Batch, rates: Rates, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms of the loss, each a mean over entries.

        Parameters
        ----------
        batch
            Minibatch whose counts are the truth.
        rates
            Prediction.
        weight
            Weight of every entry, ``(n_spots, n_genes)``.
        """
        detected = weight * (batch.counts > 0)
        error = (rates.detected - log_normalise(batch.counts, batch.depth)) ** 2
        return {"squared_error": (error * detected).sum() / detected.sum().clamp_min(1e-6)}

    def rate(self, rates: Rates) -> torch.Tensor:
        """Expected share of the depth, ``(n_spots, n_genes)``: that of the log value given detection, as there is no other."""
        return rates.detected.expm1() / TARGET_SUM

    @staticmethod
    def own_weight(rate: torch.Tensor, batch: Batch, known: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """Weight of an entry's own count in the posterior mean of its rate.

        With a gamma prior of mean ``mu`` and shape ``r`` for the expected count, a Poisson count ``y`` has the posterior
        mean ``mu (y + r) / (mu + r)``: the prediction and the count with the weights ``r`` and ``mu``.

        Parameters
        ----------
        rate
            Predicted share of the depth, ``(n_spots, n_genes)``.
        batch
            Minibatch.
        known
            True where the own count is known, ``(n_spots, n_genes)``; elsewhere it has no weight.
        size
            Shape ``r`` of every gene, ``(n_genes,)``.
        """
        expected = rate * batch.depth[:, None]
        return torch.where(known, expected / (expected + size), 0)


class CountLikelihood(LogLikelihood):
    """Negative-binomial likelihood of counts, beside the squared error of detected log values."""

    zeros_count = True

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self.log_size = nn.Parameter(torch.ones(n_genes))

    def loss(self, batch: Batch, rates: Rates, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms of the loss, as in :class:`LogLikelihood`, and the negative log likelihood of the counts."""
        expected = rates.log_rate.exp() * batch.depth.clamp_min(1e-6)[:, None]
        counts = NegativeBinomial(mu=expected, theta=self.log_size.clamp(*_LOG_SIZE_RANGE).exp())
        nll = -counts.log_prob(batch.counts)
        likelihood = (nll * weight).sum() / weight.sum().clamp_min(1e-6)
        return {**super().loss(batch, rates, weight), "negative_log_likelihood": likelihood}

    def rate(self, rates: Rates) -> torch.Tensor:
        """Expected share of the depth, ``(n_spots, n_genes)``."""
        return rates.log_rate.exp()


LIKELIHOODS: dict[str, type[LogLikelihood]] = {"counts": CountLikelihood, "log": LogLikelihood}
"""Likelihoods that the option ``loss`` of :class:`~lgdist_scvi.LGDiSTModule` knows."""
