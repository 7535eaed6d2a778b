"""The scvi-tools module: autoencoder, denoiser, their losses and read-outs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import nn

from lgdist_scvi._checks import check_choice, check_share, check_whole

from ._autoencoder import Codes, NeighborhoodEncoder, RateDecoder, Rates, Surroundings, log_normalise
from ._denoiser import Denoiser
from ._factors import FactorModel
from ._moments import Moments, blocks
from ._schedule import NoiseSchedule, ddim, dpm_solver_pp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import Batch, SpotView

TARGET_WEIGHT = 0.9
"""Share of the target genes in the loss, as published; context genes have the rest."""
CODE_NOISE = 0.1
"""Standard deviation of the noise added to half of the codes in training, as published."""
MASK_POWER = 2.0
"""Masked shares of a spot are drawn as a uniform number to this power: mostly small, up to all."""

NO_IMAGE = 0.1
"""Share of the spots that are shown without images in training, where there are any."""
IMAGE_ONLY = 0.1
"""Share of the spots of which training shows nothing but the images of their neighbourhood."""

Phase = Literal["autoencoder", "diffusion"]


class LGDiSTModule(BaseModuleClass):
    """Neighbourhood autoencoder and latent diffusion of LGDiST (arXiv 2509.01864).

    Parameters
    ----------
    n_genes, n_image
        Genes and image features per spot.
    target_genes
        True for the genes that weigh more in the loss, ``(n_genes,)``; None weighs all alike.
    n_latent
        Size of a code.
    n_hidden, n_layers, n_heads, dropout, input_dropout
        Size and regularisation of the autoencoder.
    n_denoiser_hidden, n_denoiser_layers
        Size of the denoiser.
    n_diffusion_steps
        Noise levels in training.
    n_factors
        Factors of the linear model that the rates are averaged with; 0 for none. Not used with ``loss="log"`` or
        ``condition="neighbors"``, the published conventions.
    loss
        "counts": negative-binomial likelihood of counts plus squared error of detected log values. "log": squared
        error of detected log values only, as published.
    condition
        "neighborhood": a spot's own visible entries and its neighbours. "neighbors": neighbours only, as published.
    sampler
        "dpm_solver_pp": of second order, right with few steps. "ddim": of first order.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.
    """

    gene_weight: torch.Tensor
    share: torch.Tensor
    dispersion: torch.Tensor
    detected_calibration: torch.Tensor

    def __init__(
        self,
        n_genes: int,
        n_image: int = 0,
        target_genes: NDArray[np.bool_] | None = None,
        n_latent: int = 64,
        n_hidden: int = 192,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.1,
        input_dropout: float = 0.3,
        n_denoiser_hidden: int = 192,
        n_denoiser_layers: int = 2,
        n_diffusion_steps: int = 1000,
        n_factors: int = 15,
        loss: Literal["counts", "log"] = "counts",
        condition: Literal["neighborhood", "neighbors"] = "neighborhood",
        sampler: Literal["dpm_solver_pp", "ddim"] = "dpm_solver_pp",
    ) -> None:
        super().__init__()
        check_choice("loss", loss, ("counts", "log"))
        check_choice("condition", condition, ("neighborhood", "neighbors"))
        check_choice("sampler", sampler, ("dpm_solver_pp", "ddim"))
        check_whole(0, n_image=n_image, n_factors=n_factors)
        check_whole(1, n_genes=n_genes, n_latent=n_latent, n_layers=n_layers, n_heads=n_heads)
        check_whole(1, n_denoiser_layers=n_denoiser_layers, n_diffusion_steps=n_diffusion_steps)
        for name, width in {"n_hidden": n_hidden, "n_denoiser_hidden": n_denoiser_hidden}.items():
            check_whole(1, **{name: width})
            if width % n_heads:
                raise ValueError(f"{name}={width} must be a multiple of n_heads={n_heads}.")
        check_share(dropout=dropout, input_dropout=input_dropout)
        self.loss_kind, self.condition, self.sampler = loss, condition, sampler
        self.encoder = NeighborhoodEncoder(
            n_genes, n_image, n_latent, n_hidden, n_layers, n_heads, dropout, input_dropout
        )
        self.decoder = RateDecoder(n_genes, n_latent, n_hidden, dropout)
        self.denoiser = Denoiser(
            n_latent, n_denoiser_hidden, n_denoiser_layers, n_heads, NoiseSchedule(n_diffusion_steps)
        )
        linear = n_factors > 0 and loss == "counts" and condition == "neighborhood"
        self.factors = FactorModel(n_genes, n_factors) if linear else None
        weight = torch.ones(n_genes)
        if target_genes is not None:
            targets = torch.from_numpy(np.asarray(target_genes, dtype=bool))
            weight = torch.where(targets, TARGET_WEIGHT, 1 - TARGET_WEIGHT)
        self.register_buffer("gene_weight", weight / weight.mean())
        self.register_buffer("share", torch.full((n_genes,), 1.0 / n_genes))
        self.register_buffer("dispersion", torch.ones(n_genes))
        self.register_buffer("detected_calibration", torch.tensor([0.0, 1.0, 0.0]))
        self.phase: Phase = "autoencoder"

    @torch.no_grad()
    def fit_statistics(self, view: SpotView, spots: NDArray[np.int64]) -> None:
        """Set the statistics that standardise the input, from what may be seen.

        Parameters
        ----------
        view
            Visible counts.
        spots
            Spots to measure on.
        """
        encoder = self.encoder
        self.share.copy_(torch.from_numpy(view.share))
        depth = torch.from_numpy(view.depth[spots])
        values, pooled = Moments(), Moments()
        for block in blocks(spots, view.n_genes):
            counts, hidden = (torch.from_numpy(part[block].toarray()) for part in (view.counts, view.hidden))
            values.add(log_normalise(counts, torch.from_numpy(view.depth[block])), weight=~hidden)
            pooled.add(torch.from_numpy(view.pooled(block)))
        encoder.mean.copy_(values.mean)
        encoder.std.copy_(values.std.clamp_min(0.05))
        # Sections that hardly differ must not be told apart by rounding: hence the floor.
        encoder.pooled_std.copy_(pooled.std.clamp_min(0.1))
        log_depth = depth.clamp_min(1).log()
        encoder.log_depth.copy_(torch.stack([log_depth.mean(), log_depth.std(unbiased=False).clamp_min(0.05)]))
        if encoder.image is not None:
            image = torch.from_numpy(view.image[spots][view.image_mask[spots]])
            encoder.image_mean.copy_(image.mean(0))
            encoder.image_std.copy_(image.std(0, unbiased=False).clamp_min(1e-6))

    def fit_factors(self, view: SpotView, spots: NDArray[np.int64]) -> None:
        """Fit the factor model, where there is one, to what may be seen; parameters as in :meth:`fit_statistics`."""
        if self.factors is not None:
            counts, hidden = (torch.from_numpy(part[spots].toarray()) for part in (view.counts, view.hidden))
            depth = torch.from_numpy(view.depth[spots])
            self.factors.fit(counts.to(self.device), ~hidden.to(self.device), depth.to(self.device), self.share)

    def draw_visible(self, batch: Batch) -> torch.Tensor:
        """Hide a random part of each spot's observed entries, up to all of them; True where visible, ``(b, g)``."""
        if self.condition == "neighbors":
            return torch.zeros_like(batch.observed)
        hidden = torch.rand(len(batch.counts), 1, device=self.device) ** MASK_POWER
        return batch.observed & (torch.rand(batch.counts.shape, device=self.device) >= hidden)

    def visible(self, batch: Batch) -> torch.Tensor:
        """Entries of the spots that the model may use, ``(b, g)``: the observed, or none when neighbours are all."""
        return batch.observed if self.condition == "neighborhood" else torch.zeros_like(batch.observed)

    def draw_context(self, batch: Batch) -> Batch:
        """Take the image or all expression from some neighbourhoods, so that one model does with either."""
        if self.encoder.image is None or not self.training:
            return batch
        chance = torch.rand(len(batch.counts), device=batch.counts.device)
        no_image = chance < NO_IMAGE
        return batch.without_images(no_image).images_only(~no_image & (chance < NO_IMAGE + IMAGE_ONLY))

    def encode(self, batch: Batch, visible: torch.Tensor, around: Surroundings | None = None) -> Codes:
        """Encode the spots of a minibatch from their `visible` entries, ``(b, g)``, and their neighbourhood."""
        return self.encoder(batch, visible, self.share, around)

    def decode(self, code: torch.Tensor, batch: Batch, genes: torch.Tensor | None = None) -> Rates:
        """Decode codes, ``(b, d)``, of the spots of a minibatch, for the genes of given numbers or for all."""
        return self.decoder(code, batch, self.share, genes)

    def forward(self, tensors: Batch) -> tuple[dict, dict, LossOutput]:
        """Encode, decode and score a minibatch; scvi-tools' own forward expects a dictionary."""
        encoded = self.inference(**self._get_inference_input(tensors))
        decoded = self.generative(**self._get_generative_input(tensors, encoded))
        return encoded, decoded, self.loss(tensors, encoded, decoded)

    def _get_inference_input(self, tensors: Batch) -> dict:
        batch = self.draw_context(tensors)
        return {"batch": batch, "visible": self.draw_visible(batch)}

    def inference(self, batch: Batch, visible: torch.Tensor) -> dict:
        """Encode with `visible` entries."""
        code = self.encode(batch, visible).centre
        if self.training:
            noisy = torch.rand(len(code), 1, device=code.device) < 0.5
            code = code + CODE_NOISE * noisy * torch.randn_like(code)
        return {"code": code, "batch": batch, "visible": visible}

    def _get_generative_input(self, tensors: Batch, inference_outputs: dict) -> dict:
        return {"batch": inference_outputs["batch"], "code": inference_outputs["code"]}

    def generative(self, batch: Batch, code: torch.Tensor) -> dict:
        """Decode rates."""
        return {"rates": self.decode(code, batch)}

    def loss(self, tensors: Batch, inference_outputs: dict, generative_outputs: dict) -> LossOutput:
        """Loss of the autoencoder, on the entries that it did not see."""
        masked = tensors.observed & ~inference_outputs["visible"]
        return self.expression_loss(tensors, generative_outputs["rates"], masked)

    def expression_loss(self, batch: Batch, rates: Rates, entries: torch.Tensor) -> LossOutput:
        """Loss of rates on the given entries.

        Parameters
        ----------
        batch
            Minibatch whose counts are the truth.
        rates
            Prediction.
        entries
            True where an entry counts, ``(b, g)``.
        """
        weight = self.gene_weight * entries
        detected = weight * (batch.counts > 0)
        error = (rates.detected - log_normalise(batch.counts, batch.depth)) ** 2
        squared = (error * detected).sum() / detected.sum().clamp_min(1e-6)
        terms = {"squared_error": squared.detach()}
        total = squared
        if self.loss_kind == "counts":
            log_expected = rates.log_rate + batch.depth.clamp_min(1e-6).log()[:, None]
            nll = negative_binomial_loss(batch.counts, log_expected, self.decoder.log_size)
            likelihood = (nll * weight).sum() / weight.sum().clamp_min(1e-6)
            terms["negative_log_likelihood"] = likelihood.detach()
            total = total + likelihood
        return LossOutput(loss=total, n_obs_minibatch=len(batch.counts), extra_metrics=terms)

    @torch.no_grad()
    def fit_code_statistics(self, view: SpotView, spots: NDArray[np.int64]) -> None:
        """Set the scales of codes and residuals that the denoiser works in; parameters as in :meth:`fit_statistics`."""
        tokens, residuals = Moments(), Moments()
        for block in blocks(spots, view.n_genes):
            batch = view.gather(block).to(self.device)
            codes = self.encode(batch, self.draw_visible(batch))
            tokens.add(codes.tokens.flatten(0, 1))
            residuals.add((batch.clean - codes.centre).square())
        self.denoiser.code_std.copy_(tokens.std.clamp_min(1e-3))
        self.denoiser.residual_std.copy_(residuals.mean.sqrt().clamp_min(1e-3))

    def diffusion_loss(self, batch: Batch, visible: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> LossOutput:
        """Squared error of the denoised residuals, in units of what a normal distribution leaves unexplained.

        Parameters
        ----------
        batch
            Minibatch of `b` spots with their clean codes.
        visible
            True where an entry of the spot may be used, ``(b, g)``.
        t
            Noise levels, ``(b,)``.
        noise
            Standard normal numbers, ``(b, d)``.
        """
        denoiser = self.denoiser
        with torch.no_grad():
            codes = self.encode(batch, visible)
        clean = (batch.clean - codes.centre) / denoiser.residual_std
        noisy = denoiser.schedule.add_noise(clean, noise, t)
        estimate = denoiser(noisy[:, None], t, codes, denoiser.context(codes))[:, 0]
        # Divided by sigma^2 every noise level is worth about 1; near the clean end that would count rounding.
        error = (estimate - clean) / denoiser.schedule.sigma(t, 2).clamp_min(0.05)
        return LossOutput(loss=error.square().mean(), n_obs_minibatch=len(clean))

    @torch.no_grad()
    def sample_codes(self, codes: Codes, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Draw clean codes given masked neighbourhoods.

        Parameters
        ----------
        codes
            Codes of the masked neighbourhoods of `b` spots.
        noise
            Standard normal numbers, ``(b, n_samples, d)``.
        n_steps
            Steps of the sampler.

        Returns
        -------
        Codes, ``(b, n_samples, d)``.
        """
        denoiser = self.denoiser
        context = denoiser.context(codes)

        def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return denoiser(noisy, t, codes, context)

        # Even in time, few steps of the second-order solver would get the spread of the samples wrong.
        sampler = ddim if self.sampler == "ddim" else partial(dpm_solver_pp, spacing="log_snr")
        residual = sampler(denoise, noise, denoiser.schedule, n_steps)
        return codes.centre[:, None] + residual * denoiser.residual_std

    def train(self, mode: bool = True) -> LGDiSTModule:
        """Set training mode; in the diffusion phase the frozen autoencoder stays in evaluation mode."""
        super().train(mode)
        if self.phase == "diffusion":
            for part in (self.encoder, self.decoder):
                nn.Module.train(part, False)
        return self


def negative_binomial_loss(counts: torch.Tensor, log_mean: torch.Tensor, log_size: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of counts, without the term that depends on the counts alone.

    Parameters
    ----------
    counts, log_mean
        Counts and log of their mean, ``(b, g)``.
    log_size
        Log of the inverse overdispersion ``r`` of each gene, ``(g,)``: the variance is ``mean + mean**2 / r``.
    """
    log_size = log_size.clamp(-4, 8)
    size = log_size.exp()
    log_total = torch.logaddexp(log_mean, log_size)
    return (
        torch.lgamma(size)
        - torch.lgamma(counts + size)
        + size * (log_total - log_size)
        + counts * (log_total - log_mean)
    )
