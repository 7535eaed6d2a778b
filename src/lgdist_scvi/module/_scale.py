"""Statistics that standardise the input of the encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lgdist_scvi.data._pooling import N_POOLS

from ._normalisation import log_normalise

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch


class InputScale(nn.Module):
    """Means and standard deviations of the input, and the input in units of them.

    Parameters
    ----------
    n_genes, n_image
        Genes and image features per spot.
    """

    mean: torch.Tensor
    std: torch.Tensor
    pooled_std: torch.Tensor
    log_depth: torch.Tensor
    image_mean: torch.Tensor
    image_std: torch.Tensor

    def __init__(self, n_genes: int, n_image: int) -> None:
        super().__init__()
        shapes = {"mean": (n_genes,), "std": (n_genes,), "pooled_std": (N_POOLS, n_genes), "log_depth": (2,)}
        for name, shape in (shapes | {"image_mean": (n_image,), "image_std": (n_image,)}).items():
            self.register_buffer(name, torch.ones(shape))

    def expression(self, counts: torch.Tensor, observed: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Standardised log values of counts ``(..., n_genes)``, 0 where not `observed`."""
        return (log_normalise(counts, depth) - self.mean) / self.std * observed

    def depth(self, depth: torch.Tensor) -> torch.Tensor:
        """Standardised log of depths in counts, ``(n_spots,)``."""
        return (depth.clamp_min(1).log() - self.log_depth[0]) / self.log_depth[1]

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Standardised pooled neighbourhoods, ``(n_spots, n_pools, n_genes)``."""
        return batch.pooled / self.pooled_std

    def image(self, batch: Batch) -> torch.Tensor:
        """Standardised image embeddings, ``(n_spots, 1 + n_neighbors, n_image)``."""
        return (batch.image - self.image_mean) / self.image_std
