"""Samplers by name: they run the noise schedule backwards, from noise to clean values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ._schedule import NoiseSchedule, Spacing


def ddim(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: NoiseSchedule,
    n_steps: int,
    *,
    spacing: Spacing = "time",
) -> Tensor:
    """Sample by deterministic denoising diffusion implicit steps (Song, Meng & Ermon, 2021, equation 12 with sigma 0).

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
    spacing
        Spacing of the steps, see :meth:`NoiseSchedule.respaced`.

    Returns
    -------
    The clean estimate at the last time, of the shape of ``noise``.

    Raises
    ------
    ValueError
        If ``n_steps`` is out of range or ``spacing`` unknown.
    """
    times = schedule.respaced(n_steps, spacing).tolist()
    levels = [schedule.levels[time] for time in times]
    noisy = noise
    clean = denoise(noisy, _batch_of(times[0], noise))
    for time, (alpha, sigma), (next_alpha, next_sigma) in zip(times[1:], levels, levels[1:], strict=False):
        noisy = next_alpha * clean + next_sigma * (noisy - alpha * clean) / sigma
        clean = denoise(noisy, _batch_of(time, noise))
    return clean


def dpm_solver_pp(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: NoiseSchedule,
    n_steps: int,
    *,
    spacing: Spacing = "log_snr",
) -> Tensor:
    """Sample with the two-step solver DPM-Solver++(2M) (Lu et al., 2022, algorithm 2).

    It is deterministic and works in half the log signal-to-noise ratio. The first step and the last, which removes all
    remaining noise, are of first order. Few steps that are even in time would get the spread of the samples wrong.
    Arguments, result and errors are those of :func:`ddim`.
    """
    times = schedule.respaced(n_steps, spacing).tolist()
    levels = [schedule.levels[time] for time in times]
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


def _batch_of(time: int, like: Tensor) -> Tensor:
    """One integer time repeated for every row of ``like``, on its device."""
    return torch.full((like.shape[0],), time, dtype=torch.long, device=like.device)


Sampler = Callable[..., "Tensor"]
"""Called with ``denoise``, ``noise``, ``schedule`` and ``n_steps``, as :func:`ddim`."""
SAMPLERS: dict[str, Sampler] = {"dpm_solver_pp": dpm_solver_pp, "ddim": ddim}
"""Samplers that :class:`~lgdist_scvi.LGDiSTModule` knows."""
