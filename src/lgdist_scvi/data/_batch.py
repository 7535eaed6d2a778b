"""Tensors of a minibatch of spots."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """Tensors of a minibatch of spots with their neighbours and pooled neighbourhoods."""

    counts: torch.Tensor
    """Counts of the spots, ``(n_spots, n_genes)``, 0 where hidden."""
    observed: torch.Tensor
    """True where an entry is visible, ``(n_spots, n_genes)``."""
    depth: torch.Tensor
    """Depth of the spots in counts, ``(n_spots,)``."""
    neighbor_counts: torch.Tensor
    """Counts of the neighbours, ``(n_spots, n_neighbors, n_genes)``, 0 where hidden."""
    neighbor_observed: torch.Tensor
    """True where an entry of a neighbour may be seen, ``(n_spots, n_neighbors, n_genes)``; ``(n_spots, n_neighbors, 1)``
    where nothing or everything is hidden."""
    neighbor_depth: torch.Tensor
    """Depth of the neighbours in counts, ``(n_spots, n_neighbors)``."""
    neighbor_mask: torch.Tensor
    """True where a neighbour exists, ``(n_spots, n_neighbors)``."""
    neighbor_distance: torch.Tensor
    """Distance to the neighbours in units of the section's median distance, ``(n_spots, n_neighbors)``."""
    pooled: torch.Tensor
    """Log ratio of each pooled share to the next wider, without the spot itself, ``(n_spots, n_pools, n_genes)``."""
    image: torch.Tensor
    """Image embeddings of the spots and their neighbours, ``(n_spots, 1 + n_neighbors, n_image)``; without images
    `n_image` is 0."""
    image_mask: torch.Tensor
    """True where a spot or neighbour has an image, ``(n_spots, 1 + n_neighbors)``."""
    field: torch.Tensor
    """Codes of the latent field, ``(n_spots, n_parts, n_factors)``; ``(n_spots, 1, 0)`` where they are not solved."""
    draws: torch.Tensor
    """Draws from the posterior of these codes, around them, ``(n_spots, n_draws, n_factors)``; without draws ``(n_spots, 0, 0)``."""
    spread: torch.Tensor
    """Variance of what the neighbours say of the codes, ``(n_spots, n_factors)``; without draws ``(n_spots, 0)``."""
    similar: torch.Tensor
    """Log ratio of what was counted in similar spots to what the latent field expects there, from all visible entries, and from those
    without the gene's fold, ``(n_spots, n_kinds, n_genes)``; ``(n_spots, 0, 0)`` where they are not looked for."""
    clean: torch.Tensor
    """Codes that the diffusion learns to draw, ``(n_spots, n_latent)``; ``(n_spots, 0)`` outside its training."""

    def to(self, device: torch.device | str) -> Batch:
        """Copy on a device; from pinned memory without waiting for it."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def pin_memory(self) -> Batch:
        """Copy in memory from which a GPU reads while the CPU works on."""
        return Batch(*(tensor.pin_memory() for tensor in self))

    def of_genes(self, genes: torch.Tensor | slice) -> Batch:
        """Counts and observed entries of the spots, of these genes alone."""
        return self._replace(counts=self.counts[:, genes], observed=self.observed[:, genes])

    def without_images(self, spots: torch.Tensor) -> Batch:
        """Hide all images in the neighbourhoods of the given spots, ``(n_spots,)``."""
        return self._replace(image_mask=self.image_mask & ~spots[:, None])

    def images_only(self, spots: torch.Tensor) -> Batch:
        """Hide all expression in the neighbourhoods of the given spots, ``(n_spots,)``."""
        shown = ~spots[:, None]
        return self._replace(
            counts=self.counts * shown,
            observed=self.observed & shown,
            neighbor_counts=self.neighbor_counts * shown[..., None],
            neighbor_observed=self.neighbor_observed & shown[..., None],
            pooled=self.pooled * shown[..., None],
        )
