"""Conditions by name: which of a spot's own entries a model may use, and which training hides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch

MASK_POWER = 2.0
"""The masked share of a spot is a uniform random number to this power: mostly small, up to 1."""
ALL_MASKED = 0.1
"""Share of the spots that are masked altogether in training, as spots without counts are."""
NO_IMAGE = 0.1
"""Share of the spots shown without images in training, if there are images."""
IMAGE_ONLY = 0.1
"""Share of the spots shown with only the images of their neighbourhood in training."""

Phase = Literal["autoencoder", "diffusion"]


class Neighborhood:
    """A spot is completed from its own visible entries and its neighbourhood."""

    uses_own_entries = True

    def visible(self, batch: Batch) -> torch.Tensor:
        """Entries that the model may use, True where visible, ``(n_spots, n_genes)``."""
        return batch.observed

    def draw(self, batch: Batch, phase: Phase, *, training: bool) -> tuple[Batch, torch.Tensor]:
        """Draw what a step shows of the spots.

        Parameters
        ----------
        batch
            Minibatch.
        phase
            Phase of the training.
        training
            Whether some spots are shown without their images or without expression, so that one model does with either.

        Returns
        -------
        The minibatch without what is hidden around the spots, and True where an entry of the spots themselves may be used,
        ``(n_spots, n_genes)``: a random part of those observed, of another extent for every spot, and of some spots nothing.
        """
        if training and batch.image.shape[-1]:
            chance = torch.rand(len(batch.counts), device=batch.counts.device)
            no_image = chance < NO_IMAGE
            batch = batch.without_images(no_image).images_only(~no_image & (chance < NO_IMAGE + IMAGE_ONLY))
        return batch, self._draw_visible(batch, phase)

    def _draw_visible(self, batch: Batch, phase: Phase) -> torch.Tensor:
        chance, extent = torch.rand(2, len(batch.counts), 1, device=batch.counts.device)
        hidden = torch.where(chance < ALL_MASKED, 1.0, extent**MASK_POWER)
        return batch.observed & (torch.rand(batch.counts.shape, device=batch.counts.device) >= hidden)


class Neighbors(Neighborhood):
    """A spot is completed from its neighbours alone, as published."""

    uses_own_entries = False

    def visible(self, batch: Batch) -> torch.Tensor:
        """No entry."""
        return torch.zeros_like(batch.observed)

    def _draw_visible(self, batch: Batch, phase: Phase) -> torch.Tensor:
        # The clean codes are those of visible spots, so the autoencoder has to learn these too.
        return super()._draw_visible(batch, phase) if phase == "autoencoder" else self.visible(batch)


CONDITIONS: dict[str, Neighborhood] = {"neighborhood": Neighborhood(), "neighbors": Neighbors()}
"""Conditions that :class:`~lgdist_scvi.LGDiSTModule` knows."""
