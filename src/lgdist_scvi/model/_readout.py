"""From a view to predicted rates: leave-out passes, sampled codes, posterior of the rate, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lgdist_scvi.module._autoencoder import TARGET_SUM, Rates, log_normalise

if TYPE_CHECKING:
    from lgdist_scvi.data._view import Batch
    from lgdist_scvi.dataloaders._neighborhood import NeighborhoodDataModule
    from lgdist_scvi.module._lgdist import LGDiSTModule

N_FOLDS = 5
"""Parts of the genes that are left out in turn, to predict an observed entry without its own count."""
CALIBRATION_SPOTS = 2000
"""Spots on which the overdispersion is measured."""
MIN_CALIBRATION = 100
"""Held-out detected entries without which the read-out given detection stays as trained."""
# Overdispersion of a gene is shrunk towards that of all genes, as if seen in this sum of squared expected counts.
_DISPERSION_PRIOR = 20.0
_DISPERSION_RANGE = (0.05, 1e4)


class Prediction(NamedTuple):
    """Predictions of `b` spots and `g` genes that do not know an entry's own count."""

    rate: torch.Tensor
    """Expected share of the gene in the spot's depth, ``(b, g)``."""
    rate_variance: torch.Tensor
    """Variance of the share over samples, ``(b, g)``."""
    detected: torch.Tensor
    """Expected log1p of the normalised count given that it is not zero, ``(b, g)``."""


def gene_folds(n_genes: int) -> torch.Tensor:
    """Fold of every gene, ``(g,)``; the same for all spots and calls, so that results do not depend on the minibatch."""
    order = torch.randperm(n_genes, generator=torch.Generator().manual_seed(0))
    return order % N_FOLDS


def draw_noise(n_samples: int, n_latent: int, seed: int) -> torch.Tensor:
    """Starting noise of the samples, ``(n_samples, 1, d)``, shared by all spots.

    Noise comes in pairs of opposite sign, which cancels most of the sampling error of a mean, and is the same for all
    spots, so that neighbouring spots differ by what is known of them only and results do not depend on the minibatch.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn((n_samples + 1) // 2, 1, n_latent, generator=generator)
    return torch.stack([half, -half], dim=1).flatten(0, 1)[:n_samples]


@torch.no_grad()
def predict(module: LGDiSTModule, batch: Batch, noise: torch.Tensor | None, n_steps: int) -> Prediction:
    """Predict every entry of a minibatch without its own count.

    Unobserved entries are predicted from all that is visible; observed ones from passes that leave a part of the genes
    out in turn.

    Parameters
    ----------
    module
        Trained module.
    batch
        Minibatch of `b` spots.
    noise
        Noise from :func:`draw_noise`; None decodes the autoencoder's own code.
    n_steps
        Steps of the sampler.
    """
    visible = module.visible(batch)
    prediction = predict_from(module, batch, visible, noise, n_steps)
    if not visible.any():
        return prediction
    folds = gene_folds(visible.shape[1]).to(visible.device)
    for fold in range(N_FOLDS):
        genes = folds == fold
        left_out = predict_from(module, batch, visible & ~genes, noise, n_steps)
        known = visible & genes
        prediction = Prediction(*(torch.where(known, new, old) for new, old in zip(left_out, prediction, strict=True)))
    return prediction


@torch.no_grad()
def predict_from(
    module: LGDiSTModule, batch: Batch, visible: torch.Tensor, noise: torch.Tensor | None, n_steps: int
) -> Prediction:
    """Predict every entry of a minibatch from the `visible` ones, ``(b, g)``; arguments as for :func:`predict`."""
    codes = module.encode(batch, visible)
    if noise is None:
        samples = codes.centre[None]
    else:
        samples = module.sample_codes(codes, noise.expand(-1, len(visible), -1), n_steps)
    mean = mean_square = detected = torch.zeros((), device=visible.device)
    for i, sample in enumerate(samples):
        decoded = module.decode(sample, batch)
        rate = _rate(module, decoded)
        # Running means keep one sample at a time in memory.
        delta = rate - mean
        mean = mean + delta / (i + 1)
        mean_square = mean_square + delta * (rate - mean)
        detected = detected + (decoded.detected - detected) / (i + 1)
    return Prediction(mean, mean_square / len(samples), detected)


def _rate(module: LGDiSTModule, decoded: Rates) -> torch.Tensor:
    if module.loss_kind == "log":
        # Trained on detected log values only, the published convention knows no other rate.
        return decoded.detected.expm1() / TARGET_SUM
    return decoded.log_rate.exp()


def posterior(
    prediction: Prediction, counts: torch.Tensor, depth: torch.Tensor, known: torch.Tensor, size: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the rate, given an entry's own count where it is known.

    With a gamma prior of mean ``mu`` and shape ``r`` for the expected count, a Poisson count ``y`` has the posterior
    mean ``mu (y + r) / (mu + r)``.

    Parameters
    ----------
    prediction
        Prediction without the own count.
    counts, depth
        Counts ``(b, g)`` and depths ``(b,)``.
    known
        True where the own count is known, ``(b, g)``.
    size
        Shape ``r`` of each gene, ``(g,)``.

    Returns
    -------
    Mean and variance of the share of the depth, each ``(b, g)``.
    """
    depth = depth[:, None]
    expected = prediction.rate * depth
    weight = torch.where(known, expected / (expected + size), 0)
    own = counts / depth
    mean = prediction.rate + weight * (own - prediction.rate)
    # Spread of the predicted mean, as far as the own count does not replace it, and of the rate around it.
    around = torch.where(known, (counts + size) * weight**2, expected**2 / size) / depth**2
    return mean, (1 - weight) ** 2 * prediction.rate_variance + around


def fit_calibration(module: LGDiSTModule, data: NeighborhoodDataModule, seed: int) -> None:
    """Set the overdispersion around the predicted rates, and the scale of the read-out given detection.

    Overdispersion comes from the visible entries, each predicted without its own count, by moments:
    ``1 / r = sum((y - mu)**2 - mu) / sum(mu**2)``. The read-out given detection is regressed on held-out detected
    entries, which were hidden in training: what training saw of a gene with hidden entries may have too few detections.

    Parameters
    ----------
    module
        Module with a trained autoencoder, changed in place.
    data
        Data of the training.
    seed
        Seed of the choice of spots.
    """
    device = module.device
    rows = np.random.default_rng(seed).permutation(data.n_train)[:CALIBRATION_SPOTS]
    over = torch.zeros_like(module.dispersion)
    square = torch.zeros_like(module.dispersion)
    for block in np.array_split(np.sort(rows), max(1, len(rows) // 256)):
        batch = _to_device(data.view.gather(block), device)
        expected = predict(module, batch, None, 1).rate * batch.depth[:, None]
        known = batch.observed
        over += (((batch.counts - expected) ** 2 - expected) * known).sum(0)
        square += (expected**2 * known).sum(0)
    overall = (over.sum() / square.sum().clamp_min(1e-6)).clamp_min(1 / _DISPERSION_RANGE[1])
    inverse = (over + _DISPERSION_PRIOR * overall) / (square + _DISPERSION_PRIOR)
    module.dispersion.copy_((1 / inverse.clamp_min(1 / _DISPERSION_RANGE[1])).clamp_min(_DISPERSION_RANGE[0]))

    module.detected_calibration.copy_(torch.tensor([0.0, 1.0]))
    predicted, true, weight = [], [], []
    for seen, counts, held_out in data.val_dataloader():
        batch = _to_device(seen, device)
        with torch.no_grad():
            rates = module.decode(module.encode(batch, module.visible(batch)).centre, batch)
        entries = (held_out & (counts > 0)).to(device)
        predicted.append(rates.detected[entries])
        true.append(log_normalise(counts.to(device), batch.depth)[entries])
        weight.append(module.gene_weight.expand_as(entries)[entries])
    if sum(map(len, true)) >= MIN_CALIBRATION:
        x, y, w = (torch.cat(parts).double() for parts in (predicted, true, weight))
        x_mean, y_mean = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
        slope = (w * (x - x_mean) * (y - y_mean)).sum() / (w * (x - x_mean) ** 2).sum().clamp_min(1e-9)
        slope = slope.clamp(0.5, 1.5)
        module.detected_calibration.copy_(torch.stack([y_mean - slope * x_mean, slope]).float())


def _to_device(batch: Batch, device: torch.device | str) -> Batch:
    return type(batch)(*(tensor.to(device) for tensor in batch))
