"""Depth and log values of minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lgdist_scvi._constants import TARGET_SUM

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._tissue import Spots


def log_normalise(counts: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """``log1p(counts / depth * TARGET_SUM)`` of counts ``(..., n_genes)`` and depths ``(...)``."""
    return torch.log1p(counts * (TARGET_SUM / depth.clamp_min(1.0))[..., None])


def log_value_of_one(depth: torch.Tensor) -> torch.Tensor:
    """Log value of a single count in spots of these depths, ``(n_spots, 1)``: no detected entry has less."""
    return log_normalise(torch.ones_like(depth)[:, None], depth)


def visible_depth(batch: Batch | Spots, visible: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Estimate the depth of the spots from their visible entries, ``(n_spots,)``.

    The counts of the observed entries that are not `visible` are taken off, and the rest is scaled up by the `share` of the
    depth, ``(n_genes,)``, that their genes are expected to have.
    """
    masked = batch.observed & ~visible
    lost = (batch.counts * masked).sum(dim=1)
    return (batch.depth - lost).clamp_min(0) / (1 - masked.float() @ share).clamp_min(1e-2)
