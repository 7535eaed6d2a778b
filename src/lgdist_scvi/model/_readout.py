"""From a view to predicted rates: leave-out passes, sampled codes, posterior of the rate, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.module._autoencoder import Rates, log_normalise
from lgdist_scvi.module._factors import WEIGHT as FACTOR_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import Batch
    from lgdist_scvi.dataloaders._neighborhood import NeighborhoodDataModule
    from lgdist_scvi.module._lgdist import LGDiSTModule

N_FOLDS = 5
"""Parts of the genes that are left out in turn, to predict an observed entry without its own count."""
CALIBRATION_SPOTS = 2000
"""Spots on which the overdispersion is measured."""
# What network and factor model count in the read-out given detection before held-out entries tell, and in how many
# entries that is worth.
_DETECTED_PRIOR = (0.65, 0.35)
_DETECTED_PRIOR_ENTRIES = 10.0
# Overdispersion of a gene is shrunk towards that of all genes, as if seen in this sum of squared expected counts.
_DISPERSION_PRIOR = 20.0
_DISPERSION_RANGE = (0.05, 1e4)
_TINY = 1e-12


class Prediction(NamedTuple):
    """Predictions for a minibatch."""

    network: torch.Tensor
    """The network's rate: expected share of the gene in the spot's depth, without the entry's own count,
    ``(n_spots, n_genes)``."""
    network_variance: torch.Tensor
    """Its variance over samples, ``(n_spots, n_genes)``."""
    factor: torch.Tensor
    """The factor model's rate from all visible entries, ``(n_spots, n_genes)``."""
    weight: torch.Tensor
    """Share of the factor model in the log of the rate, ``(n_spots, 1)``."""
    detected: torch.Tensor
    """Expected log1p of the normalised count given that it is not zero, without the own count,
    ``(n_spots, n_genes)``."""

    @property
    def rate(self) -> torch.Tensor:
        """Expected share of the gene in the spot's depth where the entry is not visible, ``(n_spots, n_genes)``."""
        return _mix(self.network, self.factor, self.weight)


def gene_folds(n_genes: int) -> torch.Tensor:
    """Fold of every gene, ``(n_genes,)``; always the same, so that results do not depend on the minibatch."""
    order = torch.randperm(n_genes, generator=torch.Generator().manual_seed(0))
    return order % N_FOLDS


def draw_noise(n_samples: int, n_latent: int, seed: int) -> torch.Tensor:
    """Starting noise of the samples, ``(1, n_samples, n_latent)``, shared by all spots.

    Noise comes in pairs of opposite sign, which cancels most of the sampling error of a mean, and is the same for all
    spots, so that neighbouring spots differ by what is known of them only and results do not depend on the minibatch.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn((n_samples + 1) // 2, 1, n_latent, generator=generator)
    return torch.stack([half, -half], dim=1).flatten(0, 2)[None, :n_samples]


@torch.no_grad()
def predict(
    module: LGDiSTModule,
    batch: Batch,
    noise: torch.Tensor | None,
    n_steps: int,
    *,
    observed: bool = True,
    detected: bool = False,
) -> Prediction:
    """Predict every entry of a minibatch without its own count.

    Unobserved entries are predicted from all that is visible; observed ones from passes that leave a part of the genes
    out in turn.

    Parameters
    ----------
    module
        Trained module.
    batch
        Minibatch.
    noise
        Noise from :func:`draw_noise`; None decodes the autoencoder's own code.
    n_steps
        Steps of the sampler.
    observed
        Predict the observed entries as well; else they stay 0.
    detected
        Fill `detected` as well; else it is 0 everywhere.
    """
    visible = module.visible(batch)
    around = module.encoder.surroundings(batch)
    network, variance, log_value = (torch.zeros_like(batch.counts) for _ in range(3))
    for wanted, rest, genes in _passes(visible, observed=observed):
        codes = module.encode(batch, rest, around)
        samples = codes.centre[:, None]
        if noise is not None:
            samples = module.sample_codes(codes, noise.expand(len(samples), -1, -1), n_steps)
        parts = _decode_samples(module, batch, samples, genes)
        if detected:
            parts = (*parts[:2], _calibrated(module, batch, rest, genes, parts[2]))
        for whole, part in zip((network, variance, log_value), parts, strict=True):
            whole[:, genes] = torch.where(wanted[:, genes], part, whole[:, genes])
    factor, weight = network, network.new_zeros(len(network), 1)
    if module.factors is not None:
        linear = module.factors(batch, visible, module.share)
        factor, weight = linear.log_rate.exp(), FACTOR_WEIGHT * linear.known[:, None]
    return Prediction(network, variance, factor, weight, log_value)


def _passes(visible: torch.Tensor, *, observed: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Entries to predict and those to do it from, each ``(n_spots, n_genes)``, and numbers of the genes to predict."""
    hidden = ~visible
    if hidden.any():
        yield hidden, visible, hidden.any(dim=0).nonzero()[:, 0]
    if observed:
        yield from _left_out(visible)


def _left_out(visible: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The passes over visible entries, in each of which a part of the genes is left out; see :func:`_passes`."""
    if visible.any():
        folds = gene_folds(visible.shape[1]).to(visible.device)
        for fold in range(N_FOLDS):
            left_out = folds == fold
            yield visible & left_out, visible & ~left_out, left_out.nonzero()[:, 0]


def _decode_samples(
    module: LGDiSTModule, batch: Batch, samples: torch.Tensor, genes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance over samples of the rate, and mean log value given detection, of the given genes."""
    mean = mean_square = detected = torch.zeros((), device=samples.device)
    for i, sample in enumerate(samples.unbind(dim=1)):
        decoded = module.decode(sample, batch, genes)
        rate = _rate(module, decoded)
        # Running means keep one sample at a time in memory.
        delta = rate - mean
        mean = mean + delta / (i + 1)
        mean_square = mean_square + delta * (rate - mean)
        detected = detected + (decoded.detected - detected) / (i + 1)
    return mean, mean_square / samples.shape[1], detected


def _calibrated(
    module: LGDiSTModule, batch: Batch, visible: torch.Tensor, genes: torch.Tensor, network: torch.Tensor
) -> torch.Tensor:
    """Log value given detection from what network and factor model say of it, at least that of one count."""
    shift, slope, factor_slope = module.detected_calibration
    detected = shift + slope * network
    if module.factors is not None:
        detected = detected + factor_slope * module.factors(batch, visible, module.share).detected[:, genes]
    one_count = log_normalise(torch.ones_like(batch.depth)[:, None], batch.depth)
    return torch.maximum(detected, one_count)


def _rate(module: LGDiSTModule, decoded: Rates) -> torch.Tensor:
    if module.loss_kind == "log":
        # Trained on detected log values only, the published convention knows no other rate.
        return decoded.detected.expm1() / TARGET_SUM
    return decoded.log_rate.exp()


def posterior(
    prediction: Prediction, batch: Batch, known: torch.Tensor, module: LGDiSTModule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the rate, given an entry's own count where it is known.

    With a gamma prior of mean ``mu`` and shape ``r`` for the expected count, a Poisson count ``y`` has the posterior
    mean ``mu (y + r) / (mu + r)``. The network's and the factor model's are averaged in the log.

    Parameters
    ----------
    prediction
        Prediction of a minibatch.
    batch
        Minibatch.
    known
        True where the own count is known, ``(n_spots, n_genes)``.
    module
        Trained and calibrated module.

    Returns
    -------
    Mean and variance of the share of the depth, each ``(n_spots, n_genes)``.
    """
    depth, size = batch.depth[:, None], module.dispersion
    network, own = _given_count(prediction.network, batch, known, size)
    mean = network
    if module.factors is not None:
        factor, _ = _given_count(prediction.factor, batch, known, module.factors.dispersion)
        mean = _mix(network, factor, prediction.weight)
    # Spread of the predicted mean, as far as the own count does not replace it, and of the rate around it.
    around = torch.where(known, (batch.counts + size) * own**2 / depth**2, network**2 / size)
    variance = (1 - own) ** 2 * prediction.network_variance + around
    return mean, variance * (mean / network.clamp_min(_TINY)) ** 2


def _given_count(
    rate: torch.Tensor, batch: Batch, known: torch.Tensor, size: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean of the rate, and the weight of the own count in it, each ``(n_spots, n_genes)``."""
    depth = batch.depth[:, None]
    expected = rate * depth
    own = torch.where(known, expected / (expected + size), 0)
    return rate + own * (batch.counts / depth - rate), own


def _mix(network: torch.Tensor, factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted geometric mean."""
    return torch.exp((1 - weight) * network.clamp_min(_TINY).log() + weight * factor.clamp_min(_TINY).log())


def fit_calibration(module: LGDiSTModule, data: NeighborhoodDataModule, seed: int) -> None:
    """Set the overdispersion around the predicted rates, and the scale of the read-out given detection.

    Overdispersion comes from the visible entries, by moments: ``1 / r = sum((y - mu)**2 - mu) / sum(mu**2)``, around the
    network's predictions without the own count and around the factor model's with it. The read-out given detection is
    regressed on held-out detected entries, which were hidden in training: what training saw of a gene with hidden
    entries may have too few detections.

    Parameters
    ----------
    module
        Module with a trained autoencoder, changed in place.
    data
        Data of the training.
    seed
        Seed of the choice of spots.
    """
    rows = np.random.default_rng(seed).permutation(data.n_train)[:CALIBRATION_SPOTS]
    blocks = np.array_split(np.sort(rows), max(1, len(rows) // 256))
    network, factor = _Moments(module.dispersion), _Moments(module.dispersion)
    for block in blocks:
        batch = data.view.gather(block).to(module.device)
        prediction = predict(module, batch, None, 1)
        network.add(prediction.network, batch)
        factor.add(prediction.factor, batch)
    module.dispersion.copy_(network.size())
    if module.factors is not None:
        module.factors.dispersion.copy_(factor.size())
        module.factors.fit_detection(_factor_blocks(module, data, blocks))
    _fit_detected(module, data)


class _Moments:
    """Sums over entries from which the overdispersion of every gene follows."""

    def __init__(self, like: torch.Tensor) -> None:
        self.over, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, rate: torch.Tensor, batch: Batch) -> None:
        """Add the observed entries of a minibatch."""
        expected = rate * batch.depth[:, None]
        self.over += (((batch.counts - expected) ** 2 - expected) * batch.observed).sum(0)
        self.square += (expected**2 * batch.observed).sum(0)

    def size(self) -> torch.Tensor:
        """Shape ``r`` of every gene, ``(n_genes,)``."""
        lowest, highest = _DISPERSION_RANGE
        overall = (self.over.sum() / self.square.sum().clamp_min(1e-6)).clamp_min(1 / highest)
        inverse = (self.over + _DISPERSION_PRIOR * overall) / (self.square + _DISPERSION_PRIOR)
        return (1 / inverse.clamp_min(1 / highest)).clamp_min(lowest)


def _factor_blocks(
    module: LGDiSTModule, data: NeighborhoodDataModule, blocks: list[NDArray]
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """The factor model's log rates without the own counts, and the minibatches they are of."""
    assert module.factors is not None
    for block in blocks:
        batch = data.view.gather(block).to(module.device)
        log_rate = torch.zeros_like(batch.counts)
        for known, rest, _ in _left_out(batch.observed):
            log_rate = torch.where(known, module.factors(batch, rest, module.share).log_rate, log_rate)
        yield log_rate, batch


def _fit_detected(module: LGDiSTModule, data: NeighborhoodDataModule) -> None:
    """Regress the detected ones of the held-out entries on what network and factor model say of them."""
    n_parts = 1 if module.factors is None else 2
    prior = torch.tensor([0.0, *(_DETECTED_PRIOR if n_parts == 2 else (1.0,))], dtype=torch.float64)
    penalty = torch.diag(torch.tensor([1e-3] + n_parts * [_DETECTED_PRIOR_ENTRIES], dtype=torch.float64))
    products, targets = penalty.clone(), penalty @ prior
    for seen, counts, held_out in data.val_dataloader():
        batch = seen.to(module.device)
        visible = module.visible(batch)
        with torch.no_grad():
            parts = [module.decode(module.encode(batch, visible).centre, batch).detected]
        if module.factors is not None:
            parts.append(module.factors(batch, visible, module.share).detected)
        entries = (held_out & (counts > 0)).to(module.device)
        x = torch.stack([torch.ones_like(parts[0]), *parts], dim=-1)[entries].double().cpu()
        y = log_normalise(counts.to(module.device), batch.depth)[entries].double().cpu()
        weighted = module.gene_weight.expand_as(entries)[entries].double().cpu()[:, None] * x
        products, targets = products + weighted.T @ x, targets + weighted.T @ y
    module.detected_calibration[: n_parts + 1] = torch.linalg.solve(products, targets).float()
