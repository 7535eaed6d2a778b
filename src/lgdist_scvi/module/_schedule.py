"""The noise schedule of the latent diffusion."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn

from lgdist_scvi._checks import check_choice

if TYPE_CHECKING:
    from torch import Tensor

Spacing = Literal["time", "log_snr"]

_COSINE_OFFSET = 0.008  # keeps the first noise levels from vanishing (Nichol & Dhariwal 2021)
_MAX_BETA = 0.999  # the cosine is zero at the last time; clipping leaves a small signal there
_LOG_SNR_START = -3.0  # lowest log(alpha / sigma) of "log_snr" spacing: hardly anything is determined at more noise


class NoiseSchedule(nn.Module):
    """Variance-preserving cosine schedule: ``noisy = alpha(t) * clean + sigma(t) * noise``.

    Parameters
    ----------
    n_steps
        Number of noise levels. Times run from 0 (almost clean) to ``n_steps - 1`` (almost pure noise).

    Notes
    -----
    Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, 2021, equation 17. Computed in float64 and
    kept as float32, for devices without float64. The buffers ``betas``, ``alphas`` and ``sigmas``, each of shape
    ``(n_steps,)``, move with the module; they follow from ``n_steps`` and are not part of the state dict.
    """

    betas: Tensor
    alphas: Tensor
    sigmas: Tensor

    def __init__(self, n_steps: int = 1000) -> None:
        super().__init__()
        if n_steps < 1:
            raise ValueError(f"`n_steps` must be at least 1, got {n_steps}.")
        self.n_steps = int(n_steps)
        # On the CPU, where the factors are read, also for a module that is made on another device.
        phase = torch.arange(self.n_steps + 1, dtype=torch.float64, device="cpu") / self.n_steps
        cosine = torch.cos((phase + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=_MAX_BETA)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alphas, sigmas = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        for name, values in {"betas": betas, "alphas": alphas, "sigmas": sigmas}.items():
            self.register_buffer(name, values.float(), persistent=False)
        self.levels: list[tuple[float, float]] = list(zip(alphas.tolist(), sigmas.tolist(), strict=True))
        """Factors alpha and sigma of every time in double precision, to be read without waiting for a device."""

    def alpha(self, t: Tensor, ndim: int = 1) -> Tensor:
        """Return the factor of the clean values at times ``t``.

        ``t`` holds integers in ``0 .. n_steps - 1``, of shape ``(n_spots,)``; the result has shape
        ``(n_spots, 1, ...)`` with ``ndim`` dimensions, to multiply values of shape ``(n_spots, ...)``.
        """
        return _append_dims(self.alphas[t], ndim)

    def sigma(self, t: Tensor, ndim: int = 1) -> Tensor:
        """Return the standard deviation of the noise at times ``t``; arguments as for :meth:`alpha`."""
        return _append_dims(self.sigmas[t], ndim)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy version of ``clean`` (shape ``(n_spots, ...)``) at times ``t`` (shape ``(n_spots,)``)."""
        return self.alpha(t, clean.ndim) * clean + self.sigma(t, clean.ndim) * noise

    def respaced(self, n: int, spacing: Spacing = "time") -> Tensor:
        """Times at which a sampler of ``n`` steps calls the network, all from the training schedule.

        Parameters
        ----------
        n
            Number of steps, 1 to ``n_steps``.
        spacing
            ``"time"``: evenly in time. ``"log_snr"``: the last time, then evenly in the log signal-to-noise ratio; with
            few steps the second-order sampler needs it to get the spread of the samples right.

        Returns
        -------
        Strictly decreasing integers of shape ``(n_times,)`` on the CPU from ``n_steps - 1`` to 0 inclusive;
        ``n_steps - 1`` alone for one step.

        Raises
        ------
        ValueError
            If ``n`` is out of range or ``spacing`` unknown.
        """
        last = self.n_steps - 1
        if not 1 <= n <= self.n_steps:
            raise ValueError(f"The number of sampling steps must be 1 to {self.n_steps} (the training steps), got {n}.")
        check_choice("spacing", spacing, get_args(Spacing))
        if n == 1:
            return torch.tensor([last])
        if spacing == "time":
            # Integer rounding: times are at least 1 apart before it, so they stay distinct.
            return (2 * torch.arange(n - 1, -1, -1) * last + (n - 1)) // (2 * (n - 1))
        log_snr = torch.tensor([math.log(alpha / sigma) for alpha, sigma in self.levels], dtype=torch.float64)
        wanted = torch.linspace(_LOG_SNR_START, log_snr[0].item(), n, dtype=torch.float64)
        times = (wanted[:, None] - log_snr).abs().argmin(dim=1)
        # Times that round to the same value move up to the next free one, then down from the last.
        order = torch.arange(n)
        times = (times + order).flip(0).cummax(dim=0).values.flip(0)
        times[0], times[-1] = last, n - 1
        return times.cummin(dim=0).values - order


def _append_dims(values: Tensor, ndim: int) -> Tensor:
    """View ``values`` with ones appended to its shape until it has ``ndim`` dimensions."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))
