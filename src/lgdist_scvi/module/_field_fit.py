"""Fit of the latent field by variational Bayes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._dispersion import FIRST_SIZE, Overdispersion
from ._markov import Precision, inverse, spectrum
from ._noise import noise_of

if TYPE_CHECKING:
    from lgdist_scvi.data._tissue import Tissue

    from ._field import LatentField

FIT_SWEEPS = 40
LONGEST_STEP = 1.0
"""Largest change of a number in a Newton step."""
_FIRST_STIFFNESS, _FIRST_SMOOTHNESS, _FIRST_PENALTY = 0.5, 10.0, 5.0
_STRENGTHS_FROM = 3  # sweeps after which the strengths of the prior are learnt
_SIZES_AT = (6, 10, 14)
_SIZE_ENTRIES = 1 << 21
_PENALTY_RANGE = (0.05, 1e4)
_STRENGTH_RANGE = (1e-3, 1e4)
_PSEUDO_COUNT = 0.5


@torch.no_grad()
def fit(field: LatentField, tissue: Tissue, share: torch.Tensor, seed: int) -> None:
    """Learn loadings, strengths and overdispersion from the visible entries of some spots.

    Each sweep is a Newton step of the codes, the strengths that these and a draw around them suggest, and a Newton step of the
    loadings.

    Parameters
    ----------
    field
        Changed in place.
    tissue
        Spots.
    share
        Expected share of each gene in the depth, ``(n_genes,)``.
    seed
        Seed of the draws from the posterior by which the strengths are learnt.
    """
    field.level.copy_(share.log())
    field.size.fill_(FIRST_SIZE)
    field.stiffness.fill_(_FIRST_STIFFNESS)
    field.smoothness.fill_(_FIRST_SMOOTHNESS)
    codes = _first_codes(field, tissue, share)
    covariance = codes.new_zeros(tissue.n_spots, field.n_factors, field.n_factors)
    field.products.copy_(field.second(field.loadings))
    penalty = codes.new_full((field.n_factors,), _FIRST_PENALTY)
    graph_spectrum = spectrum(tissue.laplacian)
    for sweep in range(FIT_SWEEPS):
        information, target = field.information(tissue, codes, covariance, share)
        precision = Precision(information, tissue, field.stiffness, field.smoothness)
        # Not bounded in the log rates, as where codes alone are solved: from fits that take shorter ways at first, held-out counts are predicted a little worse.
        codes = codes + (precision.solve(target, codes) - codes).clamp(-LONGEST_STEP, LONGEST_STEP)
        covariance = precision.local_covariance
        if sweep >= _STRENGTHS_FROM:
            deviation = precision.sample(noise_of(tissue, field.n_factors, seed, sweep))
            _learn_strengths(field, tissue, codes, deviation, graph_spectrum)

        uncertainty = _fit_loadings(field, tissue, codes, covariance, penalty, share)
        if sweep >= _STRENGTHS_FROM:
            square = field.loadings.square() + torch.diagonal(uncertainty, dim1=1, dim2=2)
            penalty = (tissue.n_genes / square.sum(0)).clamp(*_PENALTY_RANGE)
        if sweep in _SIZES_AT:
            _fit_sizes(field, tissue, codes, covariance, share)


def _first_codes(field: LatentField, tissue: Tissue, share: torch.Tensor) -> torch.Tensor:
    """First loadings and codes, from a singular value decomposition of the residuals."""
    residuals = []
    for _, spots in tissue.blocks():
        mean = share * spots.depth[:, None]
        residual = (spots.counts - mean) / (mean + mean.square() / FIRST_SIZE).sqrt()
        residuals.append((residual * spots.observed).clamp(-5, 5))
    n_found = min(field.n_factors, tissue.n_spots, tissue.n_genes)
    left, scale, right = torch.svd_lowrank(torch.cat(residuals), n_found, niter=3)
    codes = left.new_zeros(tissue.n_spots, field.n_factors)
    codes[:, :n_found] = 0.3 * left * scale.sqrt()
    field.loadings.zero_()
    field.loadings[:, :n_found] = 0.1 * right * scale.sqrt()
    return codes


def _fit_loadings(
    field: LatentField,
    tissue: Tissue,
    codes: torch.Tensor,
    covariance: torch.Tensor,
    penalty: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """One Newton step of the loadings and levels; returns the covariance of the loadings of each gene."""
    information, target = torch.zeros_like(field.products), torch.zeros_like(field.loadings)
    counted, expected, weights = (torch.zeros_like(field.level) for _ in range(3))
    second = field.second(codes, covariance)
    for place, spots, mean, weight, response in field.working(tissue, codes, covariance, share):
        information += weight.T @ second[place]
        target += response.T @ codes[place]
        counted += spots.counts.sum(0)
        expected += mean.sum(0)
        weights += weight.sum(0)
    uncertainty = inverse(field.full(information) + torch.diag(penalty))
    step = (uncertainty @ target[..., None])[..., 0] - field.loadings
    field.loadings += step.clamp(-LONGEST_STEP, LONGEST_STEP)
    field.products.copy_(field.second(field.loadings, uncertainty))
    field.level += ((counted + _PSEUDO_COUNT) / (expected + _PSEUDO_COUNT)).log()
    field.level_variance.copy_(1 / (weights + _PSEUDO_COUNT))
    return uncertainty


def _learn_strengths(
    field: LatentField,
    tissue: Tissue,
    codes: torch.Tensor,
    deviation: torch.Tensor,
    graph_spectrum: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Strengths of the prior given the mode of the codes and one draw around it, whose sums over spots hardly vary."""
    size = codes.square().sum(0) + deviation.square().sum(0)
    rough = (codes * (tissue.smooth @ codes)).sum(0) + (deviation * (tissue.smooth @ deviation)).sum(0)
    nodes, weights = (part.to(size.device) for part in graph_spectrum)
    # Of a given ratio the best scale is known, so that one number is left to search.
    share = torch.sigmoid(torch.linspace(-6, 6, 97, device=size.device))[:, None]
    scale = tissue.n_spots / ((1 - share) * size + share * rough).clamp_min(1e-6)
    stiff, smooth = scale * (1 - share), scale * share
    evidence = ((stiff[..., None] + smooth[..., None] * nodes).clamp_min(1e-12).log() * weights).sum(-1)
    best = evidence.argmax(dim=0, keepdim=True)
    field.stiffness.copy_(stiff.gather(0, best)[0].clamp(*_STRENGTH_RANGE))
    field.smoothness.copy_(smooth.gather(0, best)[0].clamp(*_STRENGTH_RANGE))


def _fit_sizes(
    field: LatentField, tissue: Tissue, codes: torch.Tensor, covariance: torch.Tensor, share: torch.Tensor
) -> None:
    """Inverse overdispersion of every gene, from as many spots as are enough."""
    found = Overdispersion(field.size)
    for n_seen, (_, spots, mean, *_) in enumerate(field.working(tissue, codes, covariance, share)):
        if n_seen * spots.counts.numel() >= _SIZE_ENTRIES:
            break
        found.add(mean, spots)
    field.size.copy_(found.size())
