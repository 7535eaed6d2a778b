"""What is measured on the visible data before a phase is trained: scales of the input, clean codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi.module._moments import Moments, blocks
from lgdist_scvi.module._normalisation import log_normalise

from ._seeds import seeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView
    from lgdist_scvi.module._lgdist import LGDiSTModule

STATISTICS_SPOTS = 2048
"""Number of spots used for the statistics of the input."""
CODES_BATCH = 256
"""Spots of which the clean codes are computed together."""


def some_of(spots: NDArray[np.int64], n_chosen: int, seed: int) -> NDArray[np.int64]:
    """Draw some of the spots to measure on, in order."""
    return np.sort(np.random.default_rng(seed).permutation(spots)[:n_chosen])


@torch.no_grad()
def fit_statistics(module: LGDiSTModule, view: SpotView, seed: int) -> None:
    """Set the statistics that standardise the input, from some of the visible entries.

    Parameters
    ----------
    module
        Changed in place.
    view
        Visible counts.
    seed
        Seed of the selection of spots.
    """
    everything = np.arange(view.n_spots)
    spots = some_of(everything, STATISTICS_SPOTS, seed)
    scale = module.encoder.scale
    module.share.copy_(torch.from_numpy(view.share))
    depth = torch.from_numpy(view.depth[spots])
    values, pooled = Moments(), Moments()
    for block in blocks(spots, view.n_genes):
        counts, hidden = torch.from_numpy(view.counts[block].toarray()), torch.from_numpy(view.hidden[block])
        values.add(log_normalise(counts, torch.from_numpy(view.depth[block])), weight=~hidden)
        pooled.add(torch.from_numpy(view.pools.of(block)))
    scale.mean.copy_(values.mean)
    scale.std.copy_(values.std.clamp_min(0.05))
    # The floor keeps rounding from separating sections that hardly differ.
    scale.pooled_std.copy_(pooled.std.clamp_min(0.1))
    log_depth = depth.clamp_min(1).log()
    scale.log_depth.copy_(torch.stack([log_depth.mean(), log_depth.std(unbiased=False).clamp_min(0.05)]))
    imaged = some_of(everything[view.image_mask], STATISTICS_SPOTS, seed)
    if view.image.shape[1] and len(imaged):
        image = torch.from_numpy(view.image[imaged])
        scale.image_mean.copy_(image.mean(0))
        scale.image_std.copy_(image.std(0, unbiased=False).clamp_min(1e-6))


@torch.no_grad()
def clean_codes(
    module: LGDiSTModule, view: SpotView, completed: Callable[[NDArray[np.int64]], NDArray] | None = None
) -> NDArray[np.float32]:
    """Codes of all spots from all visible entries, ``(n_spots, n_latent)``.

    The autoencoder is frozen while the diffusion is trained, so the codes are computed once.

    Parameters
    ----------
    module
        Module with a trained autoencoder.
    view
        Visible counts.
    completed
        Gives the completed counts of spots, which then teach what a clean code is; what is around the spots stays as it was
        measured.
    """
    codes = []
    for start in range(0, view.n_spots, CODES_BATCH):
        rows = np.arange(start, min(start + CODES_BATCH, view.n_spots))
        batch = view.gather(rows).to(module.device)
        if completed is not None:
            counts = torch.from_numpy(completed(rows)).to(module.device)
            batch = batch._replace(counts=counts, observed=torch.ones_like(batch.observed))
        codes.append(module.encode(batch, batch.observed).centre.cpu().numpy())
    return np.concatenate(codes)


@torch.no_grad()
def fit_code_statistics(module: LGDiSTModule, view: SpotView, spots: NDArray[np.int64], seed: int) -> None:
    """Set the scales of codes and residuals that the denoiser works in.

    Parameters
    ----------
    module
        Changed in place.
    view
        Visible counts, with the clean codes.
    spots
        Spots to measure on, ``(n_chosen,)``.
    seed
        Seed of the choice among them, and of the masks.
    """
    tokens, residuals = Moments(), Moments()
    with seeded(seed, module.device):
        for block in blocks(some_of(spots, STATISTICS_SPOTS, seed), view.n_genes):
            shown, visible = module.condition.draw(view.gather(block).to(module.device), "diffusion", training=False)
            codes = module.encode(shown, visible)
            tokens.add(
                codes.tokens.flatten(0, 1), weight=codes.mask.flatten()[:, None].expand(-1, codes.tokens.shape[2])
            )
            residuals.add((shown.clean - codes.centre).square())
    module.denoiser.code_std.copy_(tokens.std.clamp_min(1e-3))
    module.denoiser.residual_std.copy_(residuals.mean.sqrt().clamp_min(1e-3))
