"""Latent field: log rates that are linear in a few factors of the spot, each smooth along the tissue as far as the data say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from lgdist_scvi.data._similar import N_SIMILAR
from lgdist_scvi.data._tissue import BLOCK_ENTRIES

from ._detection import detection_features, fit_detection
from ._dispersion import FIRST_SIZE
from ._markov import EXACTLY, Precision, inverse
from ._normalisation import log_value_of_one, visible_depth

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._tissue import Spots, Tissue

SOLVE_SWEEPS, FOLD_SWEEPS = 6, 4
"""Newton steps of the codes, which start at the mean of the field; fewer of those without a fold of the genes, by which only the read-out
given detection is calibrated."""
FEW_COUNTS = 10.0
"""Counts of a spot at which the network has half of the weight that it has in a spot with many."""
# Shares in the log rate of a spot without counts: of what is counted around it, and of the network, which learnt from spots with seen
# neighbours, as far as these are seen. The rest is the field's.
_UNSEEN_NEAR, _UNSEEN_NETWORK = 0.3, 0.3
# Share of field and surroundings together where the network knows an image.
_BESIDE_IMAGE = 0.5
# Largest change of a log rate in a Newton step of the codes. Without a bound the first steps go far beyond the mode, from where the way
# back is one unit of the log rate a step.
_LONGEST_RATE_STEP = 2.5
_MAX_LOG_RATIO = 8.0
# Pseudo-counts of a ratio that is 1 whatever was counted.
_NO_SIMILARITY = 1e6
_MAX_VARIANCE = 4.0


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
    disagreement: torch.Tensor
    shift: torch.Tensor
    gain: torch.Tensor
    similarity: torch.Tensor

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
        self.register_buffer("stiffness", torch.ones(n_factors))
        self.register_buffer("smoothness", torch.ones(n_factors))
        self.register_buffer("mixing", torch.tensor(0.6))
        self.register_buffer("detection", torch.zeros(n_genes, 3))
        self.register_buffer("dispersion", torch.ones(n_genes))
        self.register_buffer("disagreement", torch.zeros(n_genes))
        self.register_buffer("shift", torch.tensor(0.0))
        self.register_buffer("gain", torch.zeros(n_genes))
        self.register_buffer("similarity", torch.full((len(N_SIMILAR), n_genes), _NO_SIMILARITY))

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
        for _ in range(SOLVE_SWEEPS if left_out is None else FOLD_SWEEPS):
            information, target = self.information(tissue, codes, covariance, share, left_out)
            precision = Precision(information, tissue, self.stiffness, self.smoothness)
            codes = self._step(codes, precision.solve(target, codes, EXACTLY))
            covariance = precision.local_covariance
        return Solved(codes, precision)

    def _step(self, codes: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
        """Codes on the way to those that a Newton step suggests, as far as no log rate of a spot changes too much."""
        change = towards - codes
        size = max(1, BLOCK_ENTRIES // len(self.loadings))
        largest = torch.cat([(block @ self.loadings.T).abs().amax(dim=1, keepdim=True) for block in change.split(size)])
        return codes + change * (_LONGEST_RATE_STEP / largest.clamp_min(_LONGEST_RATE_STEP))

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
        log_rate = self._log_rate(linear, variance, chosen)
        if batch.similar.shape[1]:
            log_rate = log_rate + batch.similar[:, min(part, 1), chosen] + self.gain[chosen]
        detected = (detection_features(log_rate, batch) * self.detection[chosen]).sum(-1)
        counts = (batch.counts * visible).sum(dim=1, keepdim=True)
        unseen = 1 / (1 + counts.square())  # a few counts say more than the neighbours
        n_seen = (batch.neighbor_counts.sum(dim=2) > 0).sum(dim=1, keepdim=True)
        seen = n_seen / batch.neighbor_mask.sum(dim=1, keepdim=True).clamp_min(1)
        beside_network = 1 - _UNSEEN_NETWORK * seen
        near = _UNSEEN_NEAR / beside_network
        rate = log_rate + unseen * near * (_around(batch, share, chosen, seen) - log_rate)
        weight = self._weight(batch, counts, unseen, beside_network)
        return FieldRates(rate, log_value_of_one(batch.depth) + detected, weight)

    @torch.no_grad()
    def log_variance(
        self, batch: Batch, visible: torch.Tensor, share: torch.Tensor, genes: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Variance of the log rates, ``(n_spots, n_genes)``: of codes, loadings and levels; 0 if the batch has no `spread`."""
        if not batch.spread.shape[1]:
            return torch.zeros_like(batch.counts[:, genes])
        _, variance = self.moments(batch.field[:, 0], self.covariance(batch, visible, share), genes)
        return variance + self.level_variance[genes]

    def covariance(self, batch: Batch, visible: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Covariance of the codes, those of the neighbours being uncertain as well, ``(n_spots, n_factors, n_factors)``."""
        local = self.given_neighbours(batch, visible, share)
        return local + local @ (batch.spread[..., None] * local)

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
        mean = (self.level + _bounded(batch.field[:, part] @ self.loadings.T)).exp() * depth[:, None]
        weight = visible * mean * self.size / (self.size + mean)
        degree = batch.neighbor_mask.sum(dim=1, keepdim=True)
        prior = torch.diag_embed(self.stiffness + self.smoothness * degree)
        return inverse(self.full(weight @ self.products) + prior)

    def _weight(
        self, batch: Batch, counts: torch.Tensor, unseen: torch.Tensor, beside_network: torch.Tensor
    ) -> torch.Tensor:
        """Share of the field, more of it in a spot of few counts; the network alone knows what has neither counts nor any around it."""
        known = counts / (counts + FEW_COUNTS)
        imaged = batch.image_mask[:, :1] & (batch.image.shape[2] > 0)
        informed = (counts > 0) | (batch.pooled != 0).flatten(1).any(dim=1, keepdim=True)
        few = known * self.mixing + (1 - known) * torch.where(imaged, _BESIDE_IMAGE, 1.0)
        none = torch.where(imaged, _BESIDE_IMAGE, beside_network)
        return informed * ((1 - unseen) * few + unseen * none)

    def working(
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
            mean = self._log_rate(linear, variance).exp() * depth.clamp_min(1e-6)[:, None]
            certain = visible * self.size / (self.size + mean)
            weight = mean * certain
            yield place, spots, mean * visible, weight, weight * linear + certain * (spots.counts - mean)

    def expected(
        self, spots: Spots, codes: torch.Tensor, covariance: torch.Tensor, genes: torch.Tensor
    ) -> torch.Tensor:
        """Expected counts of visible entries given the codes of the spots, ``(n_spots, n_chosen)``."""
        rate = self._log_rate(*self.moments(codes, covariance, genes), genes).exp()
        return rate * spots.depth[:, None] * spots.observed[:, genes]

    def _log_rate(
        self, linear: torch.Tensor, variance: torch.Tensor, genes: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Log of the expected rate, given the moments of the log of its ratio to the level."""
        return self.level[genes] + _bounded(linear + variance / 2)

    def information(
        self,
        tissue: Tissue,
        codes: torch.Tensor,
        covariance: torch.Tensor,
        share: torch.Tensor,
        left_out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Precision of the codes of each spot given its own counts, ``(n_spots, n_factors, n_factors)``, times codes, and that."""
        information, target = torch.zeros_like(covariance), torch.zeros_like(codes)
        for place, _, _, weight, response in self.working(tissue, codes, covariance, share, left_out):
            information[place] = self.full(weight @ self.products)
            target[place] = response @ self.loadings
        return information, target

    def moments(
        self, codes: torch.Tensor, covariance: torch.Tensor, genes: torch.Tensor | slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the log ratio of a rate to its level, each ``(n_spots, n_genes)``."""
        linear = codes @ self.loadings[genes].T
        row, col = self._triangle()
        twice = self.products[genes] * torch.where(row == col, 1.0, 2.0)
        square = self.second(codes, covariance) @ twice.T
        return linear, (square - linear.square()).clamp(0, _MAX_VARIANCE)

    def _triangle(self) -> tuple[torch.Tensor, torch.Tensor]:
        row, col = torch.tril_indices(self.n_factors, self.n_factors, device=self.loadings.device)
        return row, col

    def second(self, mean: torch.Tensor, covariance: torch.Tensor | None = None) -> torch.Tensor:
        """Lower triangles of the second moments of vectors with this mean and covariance, in one row each."""
        row, col = self._triangle()
        square = mean.index_select(1, row) * mean.index_select(1, col)
        if covariance is None:
            return square
        return square + covariance.flatten(1).index_select(1, row * self.n_factors + col)

    def full(self, lower: torch.Tensor) -> torch.Tensor:
        """Symmetric matrices of lower triangles."""
        row, col = self._triangle()
        place = row.new_empty(self.n_factors, self.n_factors)
        place[row, col] = place[col, row] = torch.arange(len(row), device=row.device)
        return lower.index_select(1, place.flatten()).unflatten(1, place.shape)


def _around(batch: Batch, share: torch.Tensor, genes: torch.Tensor | slice, seen: torch.Tensor) -> torch.Tensor:
    """Log of the share that is counted around the spots: within one hop as far as its spots are seen, else within two."""
    within = share[genes].log() + batch.pooled[..., genes].cumsum(dim=1)
    return seen * within[:, -1] + (1 - seen) * within[:, -2]


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
