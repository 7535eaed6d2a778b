"""What a forked process must not take over from its parent: threads that it does not have."""

from __future__ import annotations

import os

import torch

_forked = False


def is_forked() -> bool:
    """Whether this process was forked from one that had imported the package."""
    return _forked


def _begin() -> None:
    global _forked
    _forked = True
    # It would wait for the parent's threads for ever. PyTorch does the same in the processes of its loaders.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)
