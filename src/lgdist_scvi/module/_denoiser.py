"""Denoiser: a diffusion transformer for the code of a spot, conditioned on its masked neighbourhood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ._blocks import Attention, feed_forward

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._autoencoder import Codes
    from ._samplers import Sampler
    from ._schedule import NoiseSchedule

Context = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of the condition for every layer, computed once for all noise levels and samples."""


class DenoiserLayer(nn.Module):
    """Transformer layer modulated by noise level and condition; initialised as the identity.

    Peebles & Xie, *Scalable Diffusion Models with Transformers*, 2023 (adaLN-zero). Only the spot's own token is
    denoised, so it attends to the tokens of the condition.
    """

    def __init__(self, n_hidden: int, n_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.attention = Attention(n_hidden, n_heads)
        self.forward_norm = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.forward_ = feed_forward(n_hidden, dropout=0.0)
        modulation = nn.Linear(n_hidden, 6 * n_hidden)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(
        self,
        token: torch.Tensor,
        signal: torch.Tensor,
        keys_values: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Update the tokens of samples, ``(n_spots, n_samples, n_hidden)``.

        The signals, ``(n_spots, n_hidden)``, encode noise level and condition.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(signal)[:, None].chunk(6, dim=-1)
        normed = self.attention_norm(token) * (1 + scale_a) + shift_a
        token = token + gate_a * self.attention(normed, keys_values, mask)
        return token + gate_f * self.forward_(self.forward_norm(token) * (1 + scale_f) + shift_f)


class Denoiser(nn.Module):
    """Estimates the clean code of a spot from a noisy one and from the codes of its masked neighbourhood.

    The estimate starts from the exact one for clean codes that are normally distributed around the code of the masked spot;
    the network learns the rest. So an untrained denoiser already samples around the prediction of the autoencoder.

    Parameters
    ----------
    n_latent, n_hidden, n_layers, n_heads
        Size of the network.
    schedule
        Noise schedule.
    sampler
        One of :data:`~lgdist_scvi.module._samplers.SAMPLERS`.
    """

    code_std: torch.Tensor
    residual_std: torch.Tensor
    frequencies: torch.Tensor

    def __init__(
        self, n_latent: int, n_hidden: int, n_layers: int, n_heads: int, schedule: NoiseSchedule, sampler: Sampler
    ) -> None:
        super().__init__()
        self.schedule, self.sampler = schedule, sampler
        self.noisy = nn.Linear(n_latent, n_hidden)
        self.condition = nn.Linear(n_latent, n_hidden)
        self.time = nn.Sequential(nn.Linear(n_hidden, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden))
        self.layers = nn.ModuleList(DenoiserLayer(n_hidden, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(n_hidden)
        self.out = nn.Linear(n_hidden, n_latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("code_std", torch.ones(n_latent))
        self.register_buffer("residual_std", torch.ones(n_latent))
        frequencies = torch.exp(-math.log(10_000) * torch.arange(n_hidden // 2) / (n_hidden // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def context(self, codes: Codes) -> Context:
        """Keys and values of the condition in every layer."""
        tokens = self.condition(codes.tokens / self.code_std)
        layers = cast("Iterable[DenoiserLayer]", self.layers)
        return [layer.attention.keys_values(tokens) for layer in layers]

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, codes: Codes, context: Context) -> torch.Tensor:
        """Estimate clean residuals.

        Parameters
        ----------
        noisy
            Noisy residuals of samples, ``(n_spots, n_samples, n_latent)``: differences of clean codes to the codes of
            the masked spots, in units of `residual_std`, after :meth:`NoiseSchedule.add_noise`.
        t
            Noise levels, ``(n_spots,)``.
        codes, context
            Codes of the masked neighbourhoods and :meth:`context` of them.
        """
        alpha, sigma = self.schedule.alpha(t, 3), self.schedule.sigma(t, 3)
        centre = self.condition(codes.centre / self.code_std)
        # Samples differ only in their noise; they share signal, keys and values.
        signal = self.time(self._time_features(t)) + centre
        token = self.noisy(noisy) + centre[:, None]
        for layer, keys_values in zip(self.layers, context, strict=True):
            token = layer(token, signal, keys_values, codes.mask)
        # For normal residuals with unit variance, alpha * noisy is their mean given `noisy`, and sigma the remaining standard
        # deviation, which the network explains.
        return alpha * noisy + sigma * self.out(self.norm(token))

    def loss(self, clean: torch.Tensor, codes: Codes, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Squared error of the denoised residuals, relative to the error expected for normal residuals.

        Ho et al., *Denoising Diffusion Probabilistic Models*, 2020.

        Parameters
        ----------
        clean
            Clean codes of the spots, ``(n_spots, n_latent)``.
        codes
            Codes of the masked neighbourhoods.
        t
            Noise levels, ``(n_spots,)``: 0 is almost clean.
        noise
            Standard normal numbers, ``(n_spots, n_latent)``.
        """
        residual = (clean - codes.centre) / self.residual_std
        noisy = self.schedule.add_noise(residual, noise, t)
        estimate = self(noisy[:, None], t, codes, self.context(codes))[:, 0]
        # Dividing by sigma gives all noise levels an error of about 1; the floor avoids amplifying rounding at low noise.
        error = (estimate - residual) / self.schedule.sigma(t, 2).clamp_min(0.05)
        return error.square().mean()

    @torch.no_grad()
    def sample(self, codes: Codes, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
        """Draw clean codes given masked neighbourhoods.

        Parameters
        ----------
        codes
            Codes of the masked neighbourhoods.
        noise
            Standard normal numbers, ``(n_spots, n_samples, n_latent)``.
        n_steps
            Steps of the sampler, 1 to the number of noise levels.

        Returns
        -------
        Codes, ``(n_spots, n_samples, n_latent)``.
        """
        context = self.context(codes)

        def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self(noisy, t, codes, context)

        residual = self.sampler(denoise, noise, self.schedule, n_steps)
        return codes.centre[:, None] + residual * self.residual_std

    def _time_features(self, t: torch.Tensor) -> torch.Tensor:
        angles = t.float()[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)
