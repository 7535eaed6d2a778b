"""Random numbers of PyTorch from a seed, on one device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def seed_device(seed: int, device: torch.device) -> None:
    """Seed PyTorch on the CPU and on one device; the generators of other GPUs stay as they are."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed PyTorch inside the block only.

    Parameters
    ----------
    seed
        The seed.
    device
        Where else than on the CPU random numbers are drawn.
    """
    device = device or torch.device("cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_device(seed, device)
        yield
