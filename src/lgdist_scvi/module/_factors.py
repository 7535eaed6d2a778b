"""Factor model: log rates that are linear in a few factors of the spot. It stands beside the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ._normalisation import log_normalise, log_value_of_one, visible_depth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lgdist_scvi.data._batch import Batch

SIZE = 50.0
"""Inverse overdispersion in the fit: nearly Poisson, but without letting a very large count dominate."""
PENALTY = 5.0
"""Precision of the normal priors of factors and loadings."""
WEIGHT = 0.5
"""Weight of the factor model in the log of a rate, if the counts of the spot determine its factors."""
_FIT_STEPS = 120
_FIT_RATE = 0.03
_SCORING_STEPS = 8
_MAX_STEP = 2.0
_MAX_LOG_RATIO = 8.0
# Ridge penalty of the regression on detected entries, in units of entries.
_RIDGE = 1.0


class FactorRates(NamedTuple):
    """Prediction for a minibatch."""

    log_rate: torch.Tensor
    """Log of the expected share of the gene in the spot's depth, ``(n_spots, n_genes)``."""
    detected: torch.Tensor
    """Expected log1p of the normalised count, given that it is not zero, ``(n_spots, n_genes)``."""
    weight: torch.Tensor
    """Share of the factor model in the log of the rate, beside the network, ``(n_spots, 1)``: the less, the more of what is
    said of a spot's factors is the prior."""


class FactorModel(nn.Module):
    """Negative-binomial factor model of the counts (GLM-PCA; Townes et al., Genome Biology 2019).

    The expected count is ``depth * share * exp(factors @ loadings.T)`` with normal priors. The factors of a spot are
    computed from its visible entries only, so that the prediction of a hidden entry is independent of its count.

    Parameters
    ----------
    n_genes, n_factors
        Genes per spot and factors.
    """

    loadings: torch.Tensor
    detection: torch.Tensor
    dispersion: torch.Tensor

    def __init__(self, n_genes: int, n_factors: int) -> None:
        super().__init__()
        self.register_buffer("loadings", torch.zeros(n_genes, n_factors))
        self.register_buffer("detection", torch.zeros(n_genes, 3))
        self.register_buffer("dispersion", torch.ones(n_genes))

    def fit(self, counts: torch.Tensor, observed: torch.Tensor, depth: torch.Tensor, share: torch.Tensor) -> None:
        """Fit the loadings to the observed entries of some spots, in one batch.

        Parameters
        ----------
        counts
            Counts of the spots, ``(n_spots, n_genes)``.
        observed
            True where an entry may be seen, ``(n_spots, n_genes)``.
        depth
            Depth of the spots in counts, ``(n_spots,)``.
        share
            Expected share of each gene in the depth, ``(n_genes,)``.
        """
        offset = share.log() + depth.log()[:, None]
        mean = offset.exp()
        residual = observed * (counts - mean) / (mean + mean.square() / SIZE).sqrt()
        n_factors = min(self.loadings.shape[1], *counts.shape)
        left, scale, right = torch.svd_lowrank(residual.clamp(-5, 5), n_factors, niter=3)
        factors = (0.3 * left * scale.sqrt()).requires_grad_()
        loadings = (0.1 * right * scale.sqrt()).requires_grad_()
        optimizer = torch.optim.Adam([factors, loadings], lr=_FIT_RATE)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, _FIT_STEPS)
        with torch.enable_grad():
            for _ in range(_FIT_STEPS):
                log_mean = offset + _bounded(factors @ loadings.T)
                log_total = torch.logaddexp(log_mean, log_mean.new_tensor(SIZE).log())
                # Without terms that do not depend on the mean.
                nll = (SIZE + counts) * log_total - counts * log_mean
                loss = (nll * observed).sum() + PENALTY / 2 * (factors.square().sum() + loadings.square().sum())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
        self.loadings.zero_()
        self.loadings[:, :n_factors] = loadings.detach()

    @torch.no_grad()
    def forward(
        self, batch: Batch, visible: torch.Tensor, share: torch.Tensor, genes: torch.Tensor | None = None
    ) -> FactorRates:
        """Predict the entries of a minibatch from the `visible` ones.

        Parameters
        ----------
        batch
            Minibatch.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``.
        share
            Expected share of each gene in the depth, ``(n_genes,)``.
        genes
            Numbers of the genes to predict, ``(n_chosen,)``; all by default. The factors are solved from all genes.
        """
        depth = visible_depth(batch, visible, share)
        seen = visible.float()
        counts = batch.counts * seen
        expected = share * depth[:, None]
        loadings, n_factors = self.loadings, self.loadings.shape[1]
        # One symmetric matrix per spot: compute half of it.
        row, col = torch.tril_indices(n_factors, n_factors, device=loadings.device)
        products = loadings[:, row] * loadings[:, col]
        precision = loadings.new_empty(len(counts), n_factors, n_factors)
        prior = PENALTY * torch.eye(n_factors, device=loadings.device)
        factors = torch.zeros(len(counts), n_factors, device=loadings.device)
        # Posterior mode by Fisher scoring.
        for _ in range(_SCORING_STEPS):
            mean = expected * _bounded(factors @ loadings.T).exp()
            weight = seen / (1 + mean / SIZE)
            gradient = (weight * (counts - mean)) @ loadings - PENALTY * factors
            precision[:, row, col] = precision[:, col, row] = (weight * mean) @ products
            precision += prior
            # Without a check of the result, for which the CPU would wait: a prior makes the matrices regular.
            step = torch.linalg.solve_ex(precision, gradient[..., None]).result[..., 0]
            # Limit the step, which could overshoot far from the mode.
            longest = (step @ loadings.T).abs().amax(dim=1, keepdim=True)
            factors = factors + step * (_MAX_STEP / longest.clamp_min(_MAX_STEP))
        variance = torch.diagonal(torch.linalg.inv_ex(precision).inverse, dim1=1, dim2=2)
        known = (1 - PENALTY * variance.mean(dim=1)).clamp(0, 1)
        chosen = slice(None) if genes is None else genes
        log_rate = share[chosen].log() + _bounded(factors @ loadings[chosen].T)
        detected = (_detection_features(log_rate, batch) * self.detection[chosen]).sum(-1)
        return FactorRates(log_rate, log_value_of_one(batch.depth) + detected, WEIGHT * known[:, None])

    def fit_detection(self, blocks: Iterable[tuple[torch.Tensor, Batch]]) -> None:
        """Regress the log values of each gene's detected entries on predictions made without them.

        Parameters
        ----------
        blocks
            Log rates ``(n_spots, n_genes)``, each predicted from other entries, with their minibatches.
        """
        n_genes, n_features = self.detection.shape
        products = (_RIDGE * torch.eye(n_features, device=self.detection.device)).repeat(n_genes, 1, 1)
        targets = torch.zeros_like(self.detection)
        for log_rate, batch in blocks:
            features = _detection_features(log_rate, batch)
            detected = (batch.observed & (batch.counts > 0)).float()
            above = log_normalise(batch.counts, batch.depth) - log_value_of_one(batch.depth)
            products += torch.einsum("bg,bgi,bgj->gij", detected, features, features)
            targets += torch.einsum("bg,bgi,bg->gi", detected, features, above)
        self.detection.copy_(torch.linalg.solve(products, targets[..., None])[..., 0])


def _detection_features(log_rate: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Regressors of the log value of a detected entry minus that of one count, ``(n_spots, n_genes, 3)``."""
    log_expected = log_rate + batch.depth.log()[:, None]
    return torch.stack([torch.ones_like(log_expected), F.softplus(log_expected), log_expected], dim=-1)


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
