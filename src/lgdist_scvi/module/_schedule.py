"""The noise schedule of the latent diffusion, and samplers that run it backwards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PredictionKind = Literal["clean", "noise", "velocity"]
Spacing = Literal["time", "log_snr"]

_COSINE_OFFSET = 0.008  # keeps the first noise levels from vanishing (Nichol & Dhariwal 2021)
_MAX_BETA = 0.999  # the cosine reaches zero at the last time; clipping leaves a trace of signal there
_LOG_SNR_START = -3.0  # log(alpha / sigma) above which "log_snr" spaces: hardly anything is decided in more noise


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
        phase = torch.arange(self.n_steps + 1, dtype=torch.float64) / self.n_steps
        cosine = torch.cos((phase + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=_MAX_BETA)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alphas, sigmas = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        for name, values in {"betas": betas, "alphas": alphas, "sigmas": sigmas}.items():
            self.register_buffer(name, values.float(), persistent=False)
        # Samplers take their coefficients from here: full precision, and no waiting for a device.
        self._levels: list[tuple[float, float]] = list(zip(alphas.tolist(), sigmas.tolist(), strict=True))

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

    def velocity(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Training target ``alpha * noise - sigma * clean`` (Salimans & Ho, 2022)."""
        return self.alpha(t, clean.ndim) * noise - self.sigma(t, clean.ndim) * clean

    def clean_from(self, prediction: Tensor, noisy: Tensor, t: Tensor, kind: PredictionKind) -> Tensor:
        """Estimate of the clean values that a network's prediction implies.

        Parameters
        ----------
        prediction, noisy
            What the network returned and its input, both of shape ``(n_spots, ...)``.
        t
            Times of shape ``(n_spots,)``.
        kind
            What the network predicts.

        Raises
        ------
        ValueError
            If ``kind`` is unknown.

        Notes
        -----
        With ``"noise"`` an error of the network is divided by ``alpha``, 5e-5 at the last of 1000 times: finite, but
        useless unless clamped to the range of the clean values. ``"clean"`` and ``"velocity"`` are safe at every time.
        """
        if kind == "clean":
            return prediction
        if kind == "noise":
            return (noisy - self.sigma(t, noisy.ndim) * prediction) / self.alpha(t, noisy.ndim)
        if kind == "velocity":
            return self.alpha(t, noisy.ndim) * noisy - self.sigma(t, noisy.ndim) * prediction
        raise ValueError(f"Unknown kind of prediction {kind!r}; choose one of {', '.join(get_args(PredictionKind))}.")

    def respaced(self, n: int, spacing: Spacing = "time") -> Tensor:
        """Choose the times at which a sampler of ``n`` steps calls the network, all of them times of the training.

        Parameters
        ----------
        n
            Number of steps, 1 to ``n_steps``.
        spacing
            ``"time"``: evenly in time. ``"log_snr"``: the last time, then evenly in the log signal-to-noise ratio; with
            few steps :func:`dpm_solver_pp` needs it to get the spread of the samples right.

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
        if spacing not in get_args(Spacing):
            raise ValueError(f"Unknown spacing {spacing!r}; choose one of {', '.join(get_args(Spacing))}.")
        if n == 1:
            return torch.tensor([last])
        if spacing == "time":
            # Rounded in integers: neighbours are at least 1 apart before rounding, and never meet.
            return (2 * torch.arange(n - 1, -1, -1) * last + (n - 1)) // (2 * (n - 1))
        log_snr = torch.tensor([math.log(alpha / sigma) for alpha, sigma in self._levels], dtype=torch.float64)
        wanted = torch.linspace(_LOG_SNR_START, log_snr[0].item(), n, dtype=torch.float64)
        times = (wanted[:, None] - log_snr).abs().argmin(dim=1)
        # Times that round to the same one move up to the next free one, then down from the last.
        order = torch.arange(n)
        times = (times + order).flip(0).cummax(dim=0).values.flip(0)
        times[0], times[-1] = last, n - 1
        return times.cummin(dim=0).values - order


def ddim(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: NoiseSchedule,
    n_steps: int,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    spacing: Spacing = "time",
) -> Tensor:
    """Sample by denoising diffusion implicit steps (Song, Meng & Ermon, 2021, equations 12 and 16).

    Parameters
    ----------
    denoise
        Maps noisy values of shape ``(n_spots, ...)`` and their integer times of shape ``(n_spots,)`` to an estimate of
        the clean values.
    noise
        Standard normal values of shape ``(n_spots, ...)`` to start from.
    schedule
        The schedule of the training.
    n_steps
        Number of calls of ``denoise``, 1 to ``schedule.n_steps``.
    eta
        Share of fresh noise in each step: 0 is deterministic, 1 is ancestral sampling (DDPM).
    generator
        Source of the fresh noise; not used for ``eta=0``.
    spacing
        Spacing of the steps, see :meth:`NoiseSchedule.respaced`.

    Returns
    -------
    The clean estimate at the last time, of the shape of ``noise``.

    Raises
    ------
    ValueError
        If ``n_steps`` or ``eta`` is out of range, or ``spacing`` unknown.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must lie between 0 and 1, got {eta}.")
    times = schedule.respaced(n_steps, spacing).tolist()
    levels = [schedule._levels[time] for time in times]
    noisy = noise
    clean = denoise(noisy, _batch_of(times[0], noise))
    for time, (alpha, sigma), (next_alpha, next_sigma) in zip(times[1:], levels, levels[1:], strict=False):
        fresh = eta * next_sigma / sigma * math.sqrt(1 - (alpha / next_alpha) ** 2)
        kept = math.sqrt(next_sigma**2 - fresh**2)
        noisy = next_alpha * clean + kept * (noisy - alpha * clean) / sigma
        if fresh > 0:
            noisy = noisy + fresh * _randn_like(noise, generator)
        clean = denoise(noisy, _batch_of(time, noise))
    return clean


def dpm_solver_pp(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: NoiseSchedule,
    n_steps: int,
    *,
    spacing: Spacing = "time",
) -> Tensor:
    """Sample with the two-step solver DPM-Solver++(2M) (Lu et al., 2022, algorithm 2).

    It is deterministic and works in half the log signal-to-noise ratio. The first step and the last, which removes all
    remaining noise, are of first order. Arguments, result and errors are those of :func:`ddim`.
    """
    times = schedule.respaced(n_steps, spacing).tolist()
    levels = [schedule._levels[time] for time in times]
    log_snr = [math.log(alpha / sigma) for alpha, sigma in levels]
    noisy = noise
    clean = previous = denoise(noisy, _batch_of(times[0], noise))
    for i, (_, sigma) in enumerate(levels[:-1]):
        next_alpha, next_sigma = levels[i + 1]
        step = log_snr[i + 1] - log_snr[i]
        target = clean
        if i > 0:
            target = clean + 0.5 * step / (log_snr[i] - log_snr[i - 1]) * (clean - previous)
        noisy = next_sigma / sigma * noisy - next_alpha * math.expm1(-step) * target
        previous, clean = clean, denoise(noisy, _batch_of(times[i + 1], noise))
    return clean


def _append_dims(values: Tensor, ndim: int) -> Tensor:
    """View ``values`` with ones appended to its shape until it has ``ndim`` dimensions."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _batch_of(time: int, like: Tensor) -> Tensor:
    """One integer time repeated for every row of ``like``, on its device."""
    return torch.full((like.shape[0],), time, dtype=torch.long, device=like.device)


def _randn_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal values on the generator's device: a CPU seed then gives the same draw on every device."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
