"""Predicted rates of a minibatch: passes that leave genes out, sampled codes, posterior of the rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ._folds import N_FOLDS, gene_folds
from ._mixing import TINY, geometric_mean
from ._normalisation import log_value_of_one

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch

    from ._lgdist import LGDiSTModule


class Prediction(NamedTuple):
    """Predictions of some genes for a minibatch."""

    batch: Batch
    """The minibatch on the device of the module, with counts and observed entries of the predicted genes alone."""
    genes: torch.Tensor | slice
    """Numbers of the predicted genes, ``(n_genes,)``, or all."""
    network: torch.Tensor
    """Rate of the network: expected share of the gene in the depth of the spot, predicted without the own count,
    ``(n_spots, n_genes)``."""
    log_variance: torch.Tensor
    """Variance of the log of the rate, from what is not known of the codes, ``(n_spots, n_genes)``: over the samples of the
    diffusion; with a latent field that of its posterior, or 0 where no draws of it are at hand."""
    field: torch.Tensor
    """The field's rate, ``(n_spots, n_genes)``. The codes of the spots are solved from all visible counts, so that the rate of a
    visible entry knows the entry's own count."""
    weight: torch.Tensor
    """Share of the field in the log of the rate, ``(n_spots, 1)``."""
    disagreement: torch.Tensor
    """Square of the log ratio of the field's rate to the network's that is expected of a gene, ``(n_genes,)``."""
    shift: torch.Tensor
    """Log ratio of what was counted in all to what network and field expect, one number."""
    detected: torch.Tensor
    """Expected log1p of the normalised count given that it is not zero, without the own count,
    ``(n_spots, n_genes)``."""

    @property
    def rate(self) -> torch.Tensor:
        """Expected share of the gene in the spot's depth where the entry is not visible, ``(n_spots, n_genes)``."""
        return self.mixed(self.network, self.field)

    def mixed(
        self,
        network: torch.Tensor,
        field: torch.Tensor,
        unlike: torch.Tensor | float = 1.0,
        uncounted: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Weighted geometric mean of what network and field say, such that totals are those counted, ``(n_spots, n_genes)``.

        Parameters
        ----------
        network, field
            Shares of the depth, ``(n_spots, n_genes)``.
        unlike
            Share of their disagreement that is left where both know the own count, ``(n_spots, n_genes)``, or one for all.
        uncounted
            Weight of what is not the own count in their mean, ``(n_spots, n_genes)``, or one for all.
        """
        lost = self.weight * (1 - self.weight) * (unlike * self.disagreement / 2)
        return geometric_mean(network, field, self.weight) * (lost + uncounted * self.shift).exp()


class Pass(NamedTuple):
    """One pass over a minibatch, which predicts some genes."""

    left_out: torch.Tensor
    """True for the genes of which the pass sees nothing, ``(n_genes,)``."""
    genes: torch.Tensor
    """Numbers of the genes to predict, ``(n_predicted,)``."""
    place: torch.Tensor
    """Their columns in the result, ``(n_predicted,)``."""
    of_visible: bool
    """Whether the pass predicts the visible entries of these genes, or the others."""
    part: int
    """Which codes of the field know nothing of what the pass predicts."""


def passes(visible: torch.Tensor, genes: torch.Tensor | None = None, *, observed: bool = True) -> list[Pass]:
    """Passes that predict every entry once, never from itself.

    Parameters
    ----------
    visible
        True where an entry may be used, ``(n_spots, n_genes)``.
    genes
        Numbers of the genes to predict, ``(n_chosen,)``; all by default.
    observed
        Predict the visible entries as well as the others.
    """
    found = []
    genes = torch.arange(visible.shape[1]) if genes is None else genes
    place = (~visible[:, genes]).any(dim=0).nonzero()[:, 0]
    if len(place):
        found.append(Pass(torch.zeros_like(visible[0]), genes[place], place, of_visible=False, part=0))
    if observed and visible.any():
        folds = gene_folds(visible.shape[1])
        for fold in range(N_FOLDS):
            place = (folds[genes] == fold).nonzero()[:, 0]
            if len(place):
                found.append(Pass(folds == fold, genes[place], place, of_visible=True, part=1 + fold))
    return found


def draw_noise(n_samples: int, n_latent: int, seed: int) -> torch.Tensor:
    """Starting noise of the samples, ``(1, n_samples, n_latent)``, shared by all spots.

    Noise comes in pairs of opposite sign, which cancels most of the sampling error of a mean, and is the same for all
    spots, so that neighbouring spots differ only by their data and results do not depend on the minibatch.
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
    genes: torch.Tensor | None = None,
    observed: bool = True,
    detected: bool = False,
) -> Prediction:
    """Predict the entries of a minibatch.

    Unobserved entries are predicted from all visible entries. The network predicts observed entries in passes that leave out
    one part of the genes at a time, so its prediction does not know their own count. The field's prediction does.

    Parameters
    ----------
    module
        Trained module.
    batch
        Minibatch as gathered, on the CPU: what is to be done is read from it before it goes to the device.
    noise
        Noise from :func:`draw_noise` on the device of the module; None decodes the autoencoder's own code.
    n_steps
        Steps of the sampler.
    genes
        Numbers of the genes to predict, ``(n_chosen,)``; all by default.
    observed
        Also predict the observed entries; else the network's prediction of them is 0.
    detected
        Also compute `detected`; else it is 0.
    """
    visible = module.condition.visible(batch)
    # Looked up once: every look goes through all parameters.
    todo, device = passes(visible, genes, observed=observed), module.device
    chosen: torch.Tensor | slice = slice(None) if genes is None else genes.to(device)
    batch, visible = batch.to(device), visible.to(device, non_blocking=True)
    around = module.encoder.surroundings(batch)
    network, variance, log_value = (torch.zeros_like(batch.counts[:, chosen]) for _ in range(3))
    for part in todo:
        left_out, numbers, place = (index.to(device, non_blocking=True) for index in part[:3])
        rest = visible & ~left_out
        codes = module.encode(batch, rest, around)
        samples = codes.centre[:, None]
        if noise is not None:
            samples = module.denoiser.sample(codes, noise.expand(len(samples), -1, -1), n_steps)
        mean, spread, given_detection = _decode_samples(module, batch, samples, numbers)
        results = [(network, mean), (variance, spread)]
        if detected:
            results.append((log_value, _calibrated(module, batch, rest, numbers, given_detection, part.part)))
        wanted = visible[:, numbers] == part.of_visible
        for whole, found in results:
            whole[:, place] = torch.where(wanted, found, whole[:, place])
    if module.field is None:
        field, weight = network, network.new_zeros(len(network), 1)
        disagreement, shift = network.new_zeros(network.shape[1]), network.new_zeros(())
        log_variance = torch.log1p(variance / network.clamp_min(TINY) ** 2)
    else:
        smooth = module.field(batch, visible, module.share, chosen)
        field, weight = smooth.log_rate.exp(), smooth.weight
        disagreement, shift = module.field.disagreement[chosen], module.field.shift
        log_variance = module.field.log_variance(batch, visible, module.share, chosen)
    mixing = weight, disagreement, shift
    return Prediction(batch.of_genes(chosen), chosen, network, log_variance, field, *mixing, log_value)


class Posterior(NamedTuple):
    """Posterior of the rate of each entry, each ``(n_spots, n_genes)``.

    The rate is gamma distributed, of the given shape, around an expectation whose own log has a normal deviation. Where the own
    count is known it counts for as much as the overdispersion leaves to it, and the deviation for that much less.
    """

    mean: torch.Tensor
    """Share of the depth."""
    shape: torch.Tensor
    """Shape of the gamma distribution."""
    own: torch.Tensor
    """Weight of the own count, 0 where it is not known."""

    def variance(self, log_variance: torch.Tensor) -> torch.Tensor:
        """Variance of the share of the depth, given that of the deviation."""
        moved = (1 - self.own) ** 2 * log_variance.expm1()
        return self.mean**2 * ((1 + 1 / self.shape) * (1 + moved) - 1)


def posterior(prediction: Prediction, module: LGDiSTModule, known: torch.Tensor | None = None) -> Posterior:
    """Posterior of the rate, given the own count of an entry if known.

    The posteriors of the network and of the field are averaged in the log, and their totals kept.

    Parameters
    ----------
    prediction
        Prediction of a minibatch.
    module
        Trained and calibrated module.
    known
        True where the own count is known, ``(n_spots, n_genes)``; by default where the entry was observed.
    """
    batch, likelihood, size = prediction.batch, module.likelihood, module.dispersion[prediction.genes]
    known = batch.observed if known is None else known
    counted = batch.counts / batch.depth[:, None]

    def given_count(rate: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = likelihood.own_weight(rate, batch, known, size)
        return rate + own * (counted - rate), 1 - own

    network, unlike = given_count(prediction.network, size)
    field = network
    if module.field is not None:
        field_size = module.field.dispersion[prediction.genes]
        field, of_field = given_count(prediction.field, field_size)
        # Each moves by its own weight, and what is left of their disagreement is what neither has moved by.
        unlike = unlike * of_field
        size = geometric_mean(size, field_size, prediction.weight)
    own = likelihood.own_weight(prediction.rate, batch, known, size)
    mean = prediction.mixed(network, field, unlike, 1 - own)
    return Posterior(mean, size + batch.counts * known, own)


def _decode_samples(
    module: LGDiSTModule, batch: Batch, samples: torch.Tensor, genes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance over samples of the rate, and mean log value given detection, of the given genes."""
    mean = mean_square = detected = torch.zeros((), device=samples.device)
    for i, sample in enumerate(samples.unbind(dim=1)):
        decoded = module.decode(sample, batch, genes)
        rate = module.likelihood.rate(decoded)
        # Running means keep one sample at a time in memory.
        delta = rate - mean
        mean = mean + delta / (i + 1)
        mean_square = mean_square + delta * (rate - mean)
        detected = detected + (decoded.detected - detected) / (i + 1)
    return mean, mean_square / samples.shape[1], detected


def _calibrated(
    module: LGDiSTModule, batch: Batch, visible: torch.Tensor, genes: torch.Tensor, network: torch.Tensor, part: int
) -> torch.Tensor:
    """Log value given detection from network and field; at least that of one count."""
    shift, slope, field_slope = module.detected_calibration
    detected = shift + slope * network
    if module.field is not None:
        detected = detected + field_slope * module.field(batch, visible, module.share, genes, part).detected
    return torch.maximum(detected, log_value_of_one(batch.depth))
