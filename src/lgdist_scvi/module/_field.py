"""Latent field: log rates that are linear in a few factors of the spot, each smooth along the tissue as far as the data say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ._detection import detection_features, fit_detection
from ._dispersion import FIRST_SIZE, Overdispersion
from ._markov import EXACTLY, Precision, inverse, spectrum
from ._noise import noise_of
from ._normalisation import log_value_of_one, visible_depth

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._tissue import Spots, Tissue

FIT_SWEEPS = 20
SOLVE_SWEEPS = 8
"""Newton steps of the codes; they start at the mean of the field."""
FEW_COUNTS = 10.0
"""Counts of a spot at which the network has half of the weight that it has in a spot with many."""
# Shares in the log rate of a spot without counts: of the latent field, and of what is counted within one and within two hops.
# The rest is the network's.
_UNSEEN_FIELD, _UNSEEN_NEAR = 0.4, (0.2, 0.1)
# Share of all these together where the network knows an image.
_BESIDE_IMAGE = 0.5
_FIRST_STIFFNESS, _FIRST_SMOOTHNESS, _FIRST_PENALTY = 0.5, 10.0, 5.0
_STRENGTHS_FROM = 3  # sweeps after which the strengths of the prior are learnt
_SIZES_AT = (6, 10, 14)
_SIZE_ENTRIES = 1 << 21
_PENALTY_RANGE = (0.05, 1e4)
_LONGEST_STEP = 1.0
_MAX_LOG_RATIO = 8.0
_MAX_VARIANCE = 4.0
_PSEUDO_COUNT = 0.5


class Solved(NamedTuple):
    """Posterior of the codes of a tissue."""

    codes: torch.Tensor
    """Their mode, ``(n_spots, n_factors)``."""
    precision: Precision
    """Their precision there."""


class FieldRates(NamedTuple):
    """Prediction for a minibatch."""

    log_rate: torch.Tensor
    """Log of the expected share of the gene in the spot's depth, ``(n_spots, n_genes)``."""
    detected: torch.Tensor
    """Expected log1p of the normalised count, given that it is not zero, ``(n_spots, n_genes)``."""
    weight: torch.Tensor
    """Share of the field in the log of the rate, beside the network, ``(n_spots, 1)``."""


class LatentField(nn.Module):
    """Negative-binomial factor model of the counts whose factors are Gaussian Markov fields over the tissue graph.

    The expected count is ``depth * exp(level + codes @ loadings.T)``. The codes of factor ``k`` have the prior precision
    ``stiffness[k] + smoothness[k] * Laplacian``; a factor without smoothness is independent between spots. Both strengths, the
    precision of the loadings and the overdispersion are learnt by variational Bayes. Codes of spots are solved from all
    visible entries of the tissue, so a spot with many counts speaks for itself and one with few is spoken for by its
    surroundings.

    Parameters
    ----------
    n_genes, n_factors
        Genes per spot and factors.

    References
    ----------
    Count model: :cite:p:`townes2019glmpca`; Gaussian Markov random fields: :cite:p:`rue2005gmrf`.
    """

    loadings: torch.Tensor
    products: torch.Tensor
    level: torch.Tensor
    level_variance: torch.Tensor
    size: torch.Tensor
    stiffness: torch.Tensor
    smoothness: torch.Tensor
    mixing: torch.Tensor
    detection: torch.Tensor
    dispersion: torch.Tensor

    def __init__(self, n_genes: int, n_factors: int) -> None:
        super().__init__()
        self.n_factors = n_factors
        n_products = n_factors * (n_factors + 1) // 2
        self.register_buffer("loadings", torch.zeros(n_genes, n_factors))
        # Posterior expectation of the products of two loadings of a gene, the lower triangle.
        self.register_buffer("products", torch.zeros(n_genes, n_products))
        self.register_buffer("level", torch.zeros(n_genes))
        self.register_buffer("level_variance", torch.zeros(n_genes))
        self.register_buffer("size", torch.full((n_genes,), FIRST_SIZE))
        self.register_buffer("stiffness", torch.full((n_factors,), _FIRST_STIFFNESS))
        self.register_buffer("smoothness", torch.full((n_factors,), _FIRST_SMOOTHNESS))
        self.register_buffer("mixing", torch.tensor(0.6))
        self.register_buffer("detection", torch.zeros(n_genes, 3))
        self.register_buffer("dispersion", torch.ones(n_genes))

    @torch.no_grad()
    def fit(self, tissue: Tissue, share: torch.Tensor, seed: int) -> None:
        """Learn loadings, strengths and overdispersion from the visible entries of some spots.

        Parameters
        ----------
        tissue
            Spots.
        share
            Expected share of each gene in the depth, ``(n_genes,)``.
        seed
            Seed of the draws from the posterior by which the strengths are learnt.
        """
        n_spots, n_genes, n_factors = tissue.n_spots, tissue.n_genes, self.n_factors
        self.level.copy_(share.log())
        self.size.fill_(FIRST_SIZE)
        self.stiffness.fill_(_FIRST_STIFFNESS)
        self.smoothness.fill_(_FIRST_SMOOTHNESS)
        codes = self._start(tissue, share)
        covariance = codes.new_zeros(n_spots, n_factors, n_factors)
        self.products.copy_(self.second(self.loadings))
        penalty = codes.new_full((n_factors,), _FIRST_PENALTY)
        graph_spectrum = spectrum(tissue.laplacian)
        for sweep in range(FIT_SWEEPS):
            information, target = self._information(tissue, codes, covariance, share)
            precision = Precision(information, tissue, self.stiffness, self.smoothness)
            codes = codes + (precision.solve(target, codes) - codes).clamp(-_LONGEST_STEP, _LONGEST_STEP)
            covariance = precision.local_covariance
            if sweep >= _STRENGTHS_FROM:
                deviation = precision.sample(noise_of(tissue, n_factors, seed, sweep))
                self._learn_strengths(tissue, codes, deviation, graph_spectrum)

            uncertainty = self._fit_loadings(tissue, codes, covariance, penalty, share)
            if sweep >= _STRENGTHS_FROM:
                square = self.loadings.square() + torch.diagonal(uncertainty, dim1=1, dim2=2)
                penalty = (n_genes / square.sum(0)).clamp(*_PENALTY_RANGE)
            if sweep in _SIZES_AT:
                self._fit_sizes(tissue, codes, covariance, share)

    @torch.no_grad()
    def solve(self, tissue: Tissue, share: torch.Tensor, left_out: torch.Tensor | None = None) -> Solved:
        """Posterior of the codes of all spots given what is visible.

        Parameters
        ----------
        tissue
            Spots.
        share
            Expected share of each gene in the depth, ``(n_genes,)``.
        left_out
            True for genes of which nothing may be seen in any spot, ``(n_genes,)``.
        """
        codes = self.loadings.new_zeros(tissue.n_spots, self.n_factors)
        covariance = codes.new_zeros(tissue.n_spots, self.n_factors, self.n_factors)
        for _ in range(SOLVE_SWEEPS):
            information, target = self._information(tissue, codes, covariance, share, left_out)
            precision = Precision(information, tissue, self.stiffness, self.smoothness)
            codes = codes + (precision.solve(target, codes, EXACTLY) - codes).clamp(-_LONGEST_STEP, _LONGEST_STEP)
            covariance = precision.local_covariance
        return Solved(codes, precision)

    @torch.no_grad()
    def forward(
        self,
        batch: Batch,
        visible: torch.Tensor,
        share: torch.Tensor,
        genes: torch.Tensor | slice | None = None,
        part: int = 0,
    ) -> FieldRates:
        """Predict the entries of a minibatch.

        Parameters
        ----------
        batch
            Minibatch with codes.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``.
        share
            Expected share of each gene in the depth, ``(n_genes,)``.
        genes
            Numbers of the genes to predict, ``(n_chosen,)``; all by default.
        part
            Which of the codes to use: 0 for those from all visible entries, ``1 + fold`` for those without a fold of the genes.
        """
        chosen = slice(None) if genes is None else genes
        codes = batch.field[:, part]
        linear, variance = self.moments(codes, self.given_neighbours(batch, visible, share, part), chosen)
        log_rate = self.level[chosen] + bounded(linear + variance / 2)
        detected = (detection_features(log_rate, batch) * self.detection[chosen]).sum(-1)
        known = self._known(batch, visible)
        rate = known * log_rate + (1 - known) * _beside_counts(log_rate, batch, share, chosen)
        return FieldRates(rate, log_value_of_one(batch.depth) + detected, self._weight(batch, known))

    def fit_detection(self, blocks: Iterable[tuple[torch.Tensor, Batch]]) -> None:
        """Regress the log values of each gene's detected entries on predictions made without them.

        Parameters
        ----------
        blocks
            Log rates ``(n_spots, n_genes)``, each predicted from other entries, with their minibatches.
        """
        self.detection.copy_(fit_detection(blocks, self.detection))

    def given_neighbours(self, batch: Batch, visible: torch.Tensor, share: torch.Tensor, part: int = 0) -> torch.Tensor:
        """Covariance of the codes given those of the neighbours, ``(n_spots, n_factors, n_factors)``."""
        depth = visible_depth(batch, visible, share)
        mean = (self.level + bounded(batch.field[:, part] @ self.loadings.T)).exp() * depth[:, None]
        weight = visible * mean * self.size / (self.size + mean)
        degree = batch.neighbor_mask.sum(dim=1, keepdim=True)
        prior = torch.diag_embed(self.stiffness + self.smoothness * degree)
        return inverse(self.full(weight @ self.products) + prior)

    @staticmethod
    def _known(batch: Batch, visible: torch.Tensor) -> torch.Tensor:
        """How far the own counts speak for a spot, from 0 to 1, ``(n_spots, 1)``."""
        counts = (batch.counts * visible).sum(dim=1, keepdim=True)
        return counts / (counts + FEW_COUNTS)

    def _weight(self, batch: Batch, known: torch.Tensor) -> torch.Tensor:
        """Share of the field; the network alone knows what has neither counts nor any around it."""
        imaged = batch.image_mask[:, :1] & (batch.image.shape[2] > 0)
        informed = (known > 0) | (batch.pooled != 0).flatten(1).any(dim=1, keepdim=True)
        unseen = torch.where(imaged, _BESIDE_IMAGE, _UNSEEN_FIELD + sum(_UNSEEN_NEAR))
        return informed * (known * self.mixing + (1 - known) * unseen)

    def _start(self, tissue: Tissue, share: torch.Tensor) -> torch.Tensor:
        """First loadings and codes, from a singular value decomposition of the residuals."""
        residuals = []
        for _, spots in tissue.blocks():
            mean = share * spots.depth[:, None]
            residual = (spots.counts - mean) / (mean + mean.square() / FIRST_SIZE).sqrt()
            residuals.append((residual * spots.observed).clamp(-5, 5))
        n_found = min(self.n_factors, tissue.n_spots, tissue.n_genes)
        left, scale, right = torch.svd_lowrank(torch.cat(residuals), n_found, niter=3)
        codes = left.new_zeros(tissue.n_spots, self.n_factors)
        codes[:, :n_found] = 0.3 * left * scale.sqrt()
        self.loadings.zero_()
        self.loadings[:, :n_found] = 0.1 * right * scale.sqrt()
        return codes

    def _working(
        self,
        tissue: Tissue,
        codes: torch.Tensor,
        covariance: torch.Tensor,
        share: torch.Tensor,
        left_out: torch.Tensor | None = None,
    ) -> Iterator[tuple[slice, Spots, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Blocks of spots with expected counts, and weights and targets of the regression that a Newton step is."""
        for place, spots in tissue.blocks():
            visible = spots.observed if left_out is None else spots.observed & ~left_out
            depth = spots.depth if left_out is None else visible_depth(spots, visible, share)
            linear, variance = self.moments(codes[place], covariance[place])
            log_mean = self.level + depth.clamp_min(1e-6).log()[:, None] + bounded(linear + variance / 2)
            mean = log_mean.exp()
            certain = visible * self.size / (self.size + mean)
            weight = mean * certain
            yield place, spots, mean * visible, weight, weight * linear + certain * (spots.counts - mean)

    def _information(
        self,
        tissue: Tissue,
        codes: torch.Tensor,
        covariance: torch.Tensor,
        share: torch.Tensor,
        left_out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Precision of the codes of each spot given its own counts, ``(n_spots, n_factors, n_factors)``, times codes, and that."""
        information, target = torch.zeros_like(covariance), torch.zeros_like(codes)
        for place, _, _, weight, response in self._working(tissue, codes, covariance, share, left_out):
            information[place] = self.full(weight @ self.products)
            target[place] = response @ self.loadings
        return information, target

    def _fit_loadings(
        self,
        tissue: Tissue,
        codes: torch.Tensor,
        covariance: torch.Tensor,
        penalty: torch.Tensor,
        share: torch.Tensor,
    ) -> torch.Tensor:
        """One Newton step of the loadings and levels; returns the covariance of the loadings of each gene."""
        information, target = torch.zeros_like(self.products), torch.zeros_like(self.loadings)
        counted, expected, weights = (torch.zeros_like(self.level) for _ in range(3))
        second = self.second(codes, covariance)
        for place, spots, mean, weight, response in self._working(tissue, codes, covariance, share):
            information += weight.T @ second[place]
            target += response.T @ codes[place]
            counted += spots.counts.sum(0)
            expected += mean.sum(0)
            weights += weight.sum(0)
        uncertainty = inverse(self.full(information) + torch.diag(penalty))
        step = (uncertainty @ target[..., None])[..., 0] - self.loadings
        self.loadings += step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
        self.products.copy_(self.second(self.loadings, uncertainty))
        self.level += ((counted + _PSEUDO_COUNT) / (expected + _PSEUDO_COUNT)).log()
        self.level_variance.copy_(1 / (weights + _PSEUDO_COUNT))
        return uncertainty

    def _learn_strengths(
        self,
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
        self.stiffness.copy_(stiff.gather(0, best)[0].clamp(1e-3, 1e4))
        self.smoothness.copy_(smooth.gather(0, best)[0].clamp(1e-3, 1e4))

    def _fit_sizes(self, tissue: Tissue, codes: torch.Tensor, covariance: torch.Tensor, share: torch.Tensor) -> None:
        """Inverse overdispersion of every gene, from as many spots as are enough."""
        found = Overdispersion(self.size)
        for n_seen, (_, spots, mean, *_) in enumerate(self._working(tissue, codes, covariance, share)):
            if n_seen * spots.counts.numel() >= _SIZE_ENTRIES:
                break
            found.add(mean, spots)
        self.size.copy_(found.size())

    def moments(
        self, codes: torch.Tensor, covariance: torch.Tensor, genes: torch.Tensor | slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the log ratio of a rate to its level, each ``(n_spots, n_genes)``."""
        linear = codes @ self.loadings[genes].T
        second = self.second(codes, covariance)
        row, col = self._triangle()
        square = (second * torch.where(row == col, 1.0, 2.0)) @ self.products[genes].T
        return linear, (square - linear.square()).clamp(0, _MAX_VARIANCE)

    def _triangle(self) -> tuple[torch.Tensor, torch.Tensor]:
        row, col = torch.tril_indices(self.n_factors, self.n_factors, device=self.loadings.device)
        return row, col

    def second(self, mean: torch.Tensor, covariance: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Lower triangles of the second moments of vectors with this mean and covariance, in one row each."""
        row, col = self._triangle()
        return (mean[:, :, None] * mean[:, None] + covariance)[:, row, col]

    def full(self, lower: torch.Tensor) -> torch.Tensor:
        """Symmetric matrices of lower triangles."""
        row, col = self._triangle()
        matrices = lower.new_empty(len(lower), self.n_factors, self.n_factors)
        matrices[:, row, col] = lower
        matrices[:, col, row] = lower
        return matrices


def _beside_counts(
    log_rate: torch.Tensor, batch: Batch, share: torch.Tensor, genes: torch.Tensor | slice
) -> torch.Tensor:
    """Log rates averaged with those counted around the spots."""
    within = share[genes].log() + batch.pooled[..., genes].cumsum(dim=1)
    total = _UNSEEN_FIELD * log_rate
    for hops, weight in enumerate(_UNSEEN_NEAR, start=1):
        total = total + weight * within[:, -hops]
    return total / (_UNSEEN_FIELD + sum(_UNSEEN_NEAR))


def bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
