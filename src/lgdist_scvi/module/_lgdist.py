"""The scvi-tools module: wires encoder, likelihood, latent field and denoiser together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import nn

from lgdist_scvi._checks import check_choice, check_share, check_whole

from ._autoencoder import Codes, Rates, Sizes, Surroundings
from ._conditions import CONDITIONS, Phase
from ._denoiser import Denoiser
from ._encoders import ENCODERS
from ._field import LatentField
from ._likelihoods import LIKELIHOODS
from ._samplers import SAMPLERS
from ._scale import InputScale
from ._schedule import NoiseSchedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lgdist_scvi.data._batch import Batch

TARGET_WEIGHT = 0.9
"""Weight of target genes in the loss, as published; context genes have the rest."""
CODE_NOISE = 0.1
"""Standard deviation of the noise added to half of the codes in training, as published."""


class LGDiSTModule(BaseModuleClass):
    """Neighbourhood autoencoder and latent diffusion of LGDiST (arXiv 2509.01864).

    In the examples of the methods, `batch` is a minibatch of 8 spots and 40 genes, and codes have 8 dimensions.

    Parameters
    ----------
    n_genes, n_image
        Genes and image features per spot.
    target_genes
        True for genes with a higher weight in the loss, ``(n_genes,)``; None weights all equally.
    n_latent
        Size of a code.
    n_hidden, n_layers, n_heads
        Size of the autoencoder.
    dropout, input_dropout
        Share of its activations and of its input dropped in training.
    n_denoiser_hidden, n_denoiser_layers
        Size of the denoiser.
    n_diffusion_steps
        Noise levels in training.
    n_factors
        Factors of the latent field that the rates are averaged with; 0 for none. Not used with ``loss="log"`` or
        ``condition="neighbors"``, the published conventions.
    encoder
        "neighborhood": a transformer over the spot, its neighbours and pooled wider neighbourhoods.
    loss
        "counts": negative-binomial likelihood of counts plus squared error of detected log values. "log": squared
        error of detected log values only, as published.
    condition
        "neighborhood": a spot's own visible entries and its neighbours. "neighbors": neighbours only, as published.
    sampler
        "dpm_solver_pp": second order, accurate with few steps. "ddim": first order.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.

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

    _field_cls = LatentField

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
        n_factors: int = 20,
        encoder: str = "neighborhood",
        loss: str = "counts",
        condition: str = "neighborhood",
        sampler: str = "dpm_solver_pp",
    ) -> None:
        super().__init__()
        check_choice("encoder", encoder, ENCODERS)
        check_choice("loss", loss, LIKELIHOODS)
        check_choice("condition", condition, CONDITIONS)
        check_choice("sampler", sampler, SAMPLERS)
        widths = {"n_hidden": n_hidden, "n_denoiser_hidden": n_denoiser_hidden}
        check_whole(0, n_image=n_image, n_factors=n_factors)
        check_whole(1, n_genes=n_genes, n_latent=n_latent, n_layers=n_layers, n_heads=n_heads, **widths)
        check_whole(1, n_denoiser_layers=n_denoiser_layers, n_diffusion_steps=n_diffusion_steps)
        for name, width in widths.items():
            if width % n_heads:
                raise ValueError(f"{name}={width} must be a multiple of n_heads={n_heads}.")
        check_share(dropout=dropout, input_dropout=input_dropout)
        self.condition = CONDITIONS[condition]
        sizes = Sizes(n_genes, n_image, n_latent, n_hidden, n_layers, n_heads, dropout, input_dropout)
        self.encoder = ENCODERS[encoder](sizes, InputScale(n_genes, n_image))
        self.decoder = self.encoder.make_decoder(sizes)
        self.likelihood = LIKELIHOODS[loss](n_genes)
        self.denoiser = Denoiser(
            *(n_latent, n_denoiser_hidden, n_denoiser_layers, n_heads),
            schedule=NoiseSchedule(n_diffusion_steps),
            sampler=SAMPLERS[sampler],
        )
        linear = n_factors > 0 and self.likelihood.zeros_count and self.condition.uses_own_entries
        self.field = self._field_cls(n_genes, n_factors) if linear else None
        targets = np.ones(n_genes, dtype=bool) if target_genes is None else np.asarray(target_genes, dtype=bool)
        weight = np.where(targets, TARGET_WEIGHT, 1 - TARGET_WEIGHT)
        self.register_buffer("gene_weight", torch.from_numpy(weight / weight.mean()).float())
        self.register_buffer("share", torch.full((n_genes,), 1.0 / n_genes))
        self.register_buffer("dispersion", torch.ones(n_genes))
        self.register_buffer("detected_calibration", torch.tensor([0.0, 1.0, 0.0]))
        self.phase: Phase = "autoencoder"

    def encode(self, batch: Batch, visible: torch.Tensor, around: Surroundings | None = None) -> Codes:
        """Encode the spots of a minibatch from their visible entries and their neighbourhood.

        Parameters
        ----------
        batch
            Minibatch.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``; nothing is read where it is False.
        around
            Encoded neighbourhoods from another call; computed if None.

        Returns
        -------
        Codes of the spots, ``centre``, ``(n_spots, n_latent)``, and of all tokens of their neighbourhoods, no unit.

        Examples
        --------
        >>> codes = model.module.encode(batch, batch.observed)
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
            Minibatch; only depth and pooled neighbourhoods are read.
        genes
            Numbers of the genes to decode, ``(n_genes,)``; all by default.

        Returns
        -------
        ``log_rate``, log of the expected share of the depth, and ``detected``, expected log1p of counts per 10,000
        given that there is a count; each ``(n_spots, n_genes)``.

        Examples
        --------
        >>> code = model.module.encode(batch, batch.observed).centre
        >>> rates = model.module.decode(code, batch)
        >>> rates.log_rate.shape
        torch.Size([8, 40])
        """
        return self.decoder(code, batch, self.share, genes)

    def forward(self, tensors: Batch) -> tuple[dict, dict, LossOutput]:
        """Encode, decode and score a minibatch; the forward of scvi-tools expects a dictionary.

        Parameters
        ----------
        tensors
            Minibatch.

        Returns
        -------
        Results of :meth:`inference`, :meth:`generative` and :meth:`loss`.

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
        batch, visible = self.condition.draw(tensors, self.phase, training=self.training)
        return {"batch": batch, "visible": visible}

    def inference(self, batch: Batch, visible: torch.Tensor) -> dict:
        """Encode the spots of a minibatch; in training, add noise to half of the codes.

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
        >>> encoded = model.module.inference(batch, batch.observed)
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
        >>> encoded = model.module.inference(batch, batch.observed)
        >>> rates = model.module.generative(batch, encoded["code"])["rates"]
        """
        return {"rates": self.decode(code, batch)}

    def loss(self, tensors: Batch, inference_outputs: dict, generative_outputs: dict) -> LossOutput:
        """Loss of the autoencoder on masked entries.

        Parameters
        ----------
        tensors
            Minibatch.
        inference_outputs
            Result of :meth:`inference`.
        generative_outputs
            Result of :meth:`generative`.

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
            True for the entries to score, ``(n_spots, n_genes)``.

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
        terms = self.likelihood.loss(batch, rates, self.gene_weight * entries)
        details = {name: term.detach() for name, term in terms.items()}
        return LossOutput(loss=sum(terms.values()), n_obs_minibatch=len(batch.counts), extra_metrics=details)

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
            for part in (self.encoder, self.decoder, self.likelihood):
                nn.Module.train(part, False)
        return self
