"""Random numbers of PyTorch from a seed, on one device."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


# PyTorch's layers and Lightning draw from one generator for all threads: who has seeded it draws alone, and others wait.
_DRAWING = threading.RLock()


def _renew() -> None:
    """A process that is forked while another thread draws would wait for it for ever."""
    global _DRAWING
    _DRAWING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed PyTorch on the CPU and on one device; the generators of other GPUs stay as they are."""
    seed = int(seed)  # PyTorch takes no numbers of NumPy
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed PyTorch inside the block only; another thread that does so waits until the block is left.

    Parameters
    ----------
    seed
        The seed.
    device
        Where else than on the CPU random numbers are drawn.
    """
    device = device or torch.device("cpu")
    with _DRAWING, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_device(seed, device)
        yield
