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
    n_hidden, n_layers, n_heads
        Size of the autoencoder.
    dropout, input_dropout
        Share of its activations and of its input that training drops.
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

    Notes
    -----
    A minibatch comes from a view of the spots, ``batch = view.gather(rows)``, which the model makes of its AnnData. In
    the examples of the methods `batch` is one of 8 spots and 40 genes, and ``model.module`` makes codes of 8 numbers.

    References
    ----------
    :cite:t:`cardenas2025lgdist`, as described in :doc:`/method`; denoiser: :cite:p:`peebles2023dit`; noise schedule:
    :cite:p:`nichol2021improved`, equation 17.

    Examples
    --------
    >>> module = lgdist_scvi.LGDiSTModule(n_genes=40, n_latent=16, loss="log")
    >>> module.denoiser.schedule.n_steps
    1000
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
            Row numbers of the spots to measure on, ``(n_chosen,)``.

        Examples
        --------
        >>> module = lgdist_scvi.LGDiSTModule(view.n_genes)
        >>> module.fit_statistics(view, np.arange(view.n_spots))
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
        """Fit the factor model, where there is one, to what may be seen.

        Parameters
        ----------
        view
            Visible counts.
        spots
            Row numbers of the spots to fit to, ``(n_chosen,)``.

        References
        ----------
        :cite:t:`townes2019glmpca`; "The factor model" of :doc:`/method`.

        Examples
        --------
        >>> module = lgdist_scvi.LGDiSTModule(view.n_genes)
        >>> module.fit_statistics(view, np.arange(view.n_spots))
        >>> module.fit_factors(view, np.arange(view.n_spots))
        """
        if self.factors is not None:
            counts, hidden = (torch.from_numpy(part[spots].toarray()) for part in (view.counts, view.hidden))
            depth = torch.from_numpy(view.depth[spots])
            self.factors.fit(counts.to(self.device), ~hidden.to(self.device), depth.to(self.device), self.share)

    def draw_visible(self, batch: Batch) -> torch.Tensor:
        """Hide a random part of each spot's observed entries, up to all of them.

        Parameters
        ----------
        batch
            Minibatch.

        Returns
        -------
        True where an entry is visible, ``(n_spots, n_genes)``.

        Examples
        --------
        >>> visible = model.module.draw_visible(batch)
        >>> bool((visible & ~batch.observed).any())
        False
        """
        if self.condition == "neighbors":
            return torch.zeros_like(batch.observed)
        hidden = torch.rand(len(batch.counts), 1, device=self.device) ** MASK_POWER
        return batch.observed & (torch.rand(batch.counts.shape, device=self.device) >= hidden)

    def visible(self, batch: Batch) -> torch.Tensor:
        """Tell the entries of the spots that the model may use: the observed, or none when neighbours are all.

        Parameters
        ----------
        batch
            Minibatch.

        Returns
        -------
        True where an entry may be used, ``(n_spots, n_genes)``.

        Examples
        --------
        >>> model.module.visible(batch).shape
        torch.Size([8, 40])
        """
        return batch.observed if self.condition == "neighborhood" else torch.zeros_like(batch.observed)

    def draw_context(self, batch: Batch) -> Batch:
        """Take the image or all expression from some neighbourhoods, so that one model does with either.

        Parameters
        ----------
        batch
            Minibatch.

        Returns
        -------
        The minibatch as it is to be shown in training; outside training as it was.

        Examples
        --------
        >>> shown = model.module.draw_context(batch)
        """
        if self.encoder.image is None or not self.training:
            return batch
        chance = torch.rand(len(batch.counts), device=batch.counts.device)
        no_image = chance < NO_IMAGE
        return batch.without_images(no_image).images_only(~no_image & (chance < NO_IMAGE + IMAGE_ONLY))

    def encode(self, batch: Batch, visible: torch.Tensor, around: Surroundings | None = None) -> Codes:
        """Encode the spots of a minibatch from their visible entries and their neighbourhood.

        Parameters
        ----------
        batch
            Minibatch.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``; nothing is read where it is False.
        around
            What is known of the neighbourhoods from another call; computed if None.

        Returns
        -------
        Codes of the spots, ``centre``, ``(n_spots, n_latent)``, and of all tokens of their neighbourhoods, no unit.

        Examples
        --------
        >>> codes = model.module.encode(batch, model.module.visible(batch))
        >>> codes.centre.shape
        torch.Size([8, 8])
        """
        return self.encoder(batch, visible, self.share, around)

    def decode(self, code: torch.Tensor, batch: Batch, genes: torch.Tensor | None = None) -> Rates:
        """Decode codes of the spots of a minibatch.

        Parameters
        ----------
        code
            Codes, ``(n_spots, n_latent)``, no unit.
        batch
            Minibatch, of which the depth and the pooled neighbourhoods are read.
        genes
            Numbers of the genes to decode, ``(n_genes,)``; all by default.

        Returns
        -------
        ``log_rate``, log of the expected share of the depth, and ``detected``, expected log1p of counts per 10,000
        given that there is a count; each ``(n_spots, n_genes)``.

        Examples
        --------
        >>> code = model.module.encode(batch, model.module.visible(batch)).centre
        >>> rates = model.module.decode(code, batch)
        >>> rates.log_rate.shape
        torch.Size([8, 40])
        """
        return self.decoder(code, batch, self.share, genes)

    def forward(self, tensors: Batch) -> tuple[dict, dict, LossOutput]:
        """Encode, decode and score a minibatch; scvi-tools' own forward expects a dictionary.

        Parameters
        ----------
        tensors
            Minibatch.

        Returns
        -------
        What :meth:`inference`, :meth:`generative` and :meth:`loss` return.

        Examples
        --------
        >>> encoded, decoded, losses = model.module(batch)
        >>> losses.n_obs_minibatch
        8
        """
        encoded = self.inference(**self._get_inference_input(tensors))
        decoded = self.generative(**self._get_generative_input(tensors, encoded))
        return encoded, decoded, self.loss(tensors, encoded, decoded)

    def _get_inference_input(self, tensors: Batch) -> dict:
        batch = self.draw_context(tensors)
        return {"batch": batch, "visible": self.draw_visible(batch)}

    def inference(self, batch: Batch, visible: torch.Tensor) -> dict:
        """Encode the spots of a minibatch, in training with noise on half of the codes.

        Parameters
        ----------
        batch
            Minibatch.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``.

        Returns
        -------
        ``code``, ``(n_spots, n_latent)``, no unit, beside `batch` and `visible`.

        Examples
        --------
        >>> encoded = model.module.inference(batch, model.module.visible(batch))
        >>> encoded["code"].shape
        torch.Size([8, 8])
        """
        code = self.encode(batch, visible).centre
        if self.training:
            noisy = torch.rand(len(code), 1, device=code.device) < 0.5
            code = code + CODE_NOISE * noisy * torch.randn_like(code)
        return {"code": code, "batch": batch, "visible": visible}

    def _get_generative_input(self, tensors: Batch, inference_outputs: dict) -> dict:
        return {"batch": inference_outputs["batch"], "code": inference_outputs["code"]}

    def generative(self, batch: Batch, code: torch.Tensor) -> dict:
        """Decode the codes of a minibatch.

        Parameters
        ----------
        batch
            Minibatch.
        code
            Codes, ``(n_spots, n_latent)``, no unit.

        Returns
        -------
        ``rates``, as :meth:`decode` returns them.

        Examples
        --------
        >>> encoded = model.module.inference(batch, model.module.visible(batch))
        >>> rates = model.module.generative(batch, encoded["code"])["rates"]
        """
        return {"rates": self.decode(code, batch)}

    def loss(self, tensors: Batch, inference_outputs: dict, generative_outputs: dict) -> LossOutput:
        """Loss of the autoencoder, on the entries that it did not see.

        Parameters
        ----------
        tensors
            Minibatch.
        inference_outputs
            What :meth:`inference` returned.
        generative_outputs
            What :meth:`generative` returned.

        Returns
        -------
        As :meth:`expression_loss`.

        Examples
        --------
        >>> encoded, decoded, _ = model.module(batch)
        >>> losses = model.module.loss(batch, encoded, decoded)
        """
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
            True where an entry counts, ``(n_spots, n_genes)``.

        Returns
        -------
        The loss, no unit, and its terms: the squared error of log1p counts per 10,000 at detected entries, and with
        ``loss="counts"`` the negative log likelihood of the counts. Each is a mean over entries, weighted by gene.

        References
        ----------
        Squared error and weights of the genes: :cite:t:`cardenas2025lgdist`; likelihood: "What is modelled" of
        :doc:`/method`.

        Examples
        --------
        >>> _, decoded, _ = model.module(batch)
        >>> losses = model.module.expression_loss(batch, decoded["rates"], batch.observed)
        >>> sorted(losses.extra_metrics)
        ['negative_log_likelihood', 'squared_error']
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
        """Set the scales of codes and residuals that the denoiser works in.

        Parameters
        ----------
        view
            Visible counts, with the clean codes.
        spots
            Row numbers of the spots to measure on, ``(n_chosen,)``.

        Examples
        --------
        >>> view.clean = model.get_latent_representation()
        >>> model.module.fit_code_statistics(view, np.arange(view.n_spots))
        """
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
            Minibatch with the clean codes of the spots.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``.
        t
            Numbers of the noise levels, ``(n_spots,)``: 0 is almost clean.
        noise
            Standard normal numbers, ``(n_spots, n_latent)``, no unit.

        Returns
        -------
        The loss, no unit.

        References
        ----------
        :cite:t:`ho2020ddpm`, with the schedule of :cite:t:`nichol2021improved`, equation 17; "The diffusion" of
        :doc:`/method`.

        Examples
        --------
        >>> import torch
        >>> view.clean = model.get_latent_representation()
        >>> batch = view.gather(np.arange(8))
        >>> t, noise = torch.zeros(8, dtype=torch.long), torch.randn(8, 8)
        >>> losses = model.module.diffusion_loss(batch, model.module.visible(batch), t, noise)
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
            Codes of the masked neighbourhoods.
        noise
            Standard normal numbers, ``(n_spots, n_samples, n_latent)``, no unit.
        n_steps
            Steps of the sampler.

        Returns
        -------
        Codes, ``(n_spots, n_samples, n_latent)``, no unit.

        Raises
        ------
        ValueError
            If `n_steps` is not between 1 and the number of noise levels.

        References
        ----------
        DPM-Solver++(2M), :cite:t:`lu2022dpmsolverpp`, algorithm 2; or DDIM, :cite:t:`song2021ddim`, equation 12.

        Examples
        --------
        >>> import torch
        >>> codes = model.module.encode(batch, model.module.visible(batch))
        >>> model.module.sample_codes(codes, torch.randn(8, 4, 8), n_steps=2).shape
        torch.Size([8, 4, 8])
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
        """Set training mode; in the diffusion phase the frozen autoencoder stays in evaluation mode.

        Parameters
        ----------
        mode
            True for training, False for evaluation.

        Returns
        -------
        The module itself.

        Examples
        --------
        >>> model.module.train(False).training
        False
        """
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
        Counts and log of their mean, ``(n_spots, n_genes)``.
    log_size
        Log of the inverse overdispersion ``r`` of each gene, ``(n_genes,)``: the variance is ``mean + mean**2 / r``.
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
