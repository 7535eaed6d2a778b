"""Fits the latent field to the spots of a view, and solves their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi.data._tissue import Tissue, in_strips

from ._folds import N_FOLDS, gene_folds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._lgdist import LGDiSTModule

FIT_ENTRIES = 1 << 24
"""Maximum number of entries that the field is fitted to: 16,000 spots of 1,024 genes."""
FIT_STRIPS = 4
"""Parts of a larger tissue that it is then fitted to."""
STRIP_SPOTS = 16384
"""Spots whose codes are solved together. In a larger tissue they are solved in strips, each with what is beside it."""
HALO_SPOTS = 4096


def fit_field(module: LGDiSTModule, view: SpotView, seed: int) -> None:
    """Fit the field, where there is one, to the visible entries of as many spots as memory allows.

    Parameters
    ----------
    module
        Changed in place.
    view
        Visible counts.
    seed
        Seed of the draws by which the strengths of the field are learnt.
    """
    if module.field is None:
        return
    most = max(FIT_STRIPS, FIT_ENTRIES // view.n_genes)
    rows = np.arange(view.n_spots)
    if view.n_spots > most:
        order, length = in_strips(view.graph), most // FIT_STRIPS
        starts = np.linspace(0, view.n_spots - length, FIT_STRIPS).astype(np.int64)
        rows = np.unique(np.concatenate([order[start : start + length] for start in starts]))
    module.field.fit(Tissue(view, rows, module.device), module.share, seed)


def solve_field(module: LGDiSTModule, view: SpotView, *, folds: bool = False) -> None:
    """Solve the codes of all spots of the view from its visible entries.

    Parameters
    ----------
    module
        Module with a fitted field, or without one.
    view
        Visible counts; its codes are set, ``(n_spots, 1, n_factors)``, or with `folds` ``(n_spots, n_parts, n_factors)``.
    folds
        Also solve codes from which a fold of the genes is left out in all spots, which know no entry of these genes.
    """
    field = module.field
    if field is None:
        return
    left_out: list[torch.Tensor | None] = [None]
    if folds:
        left_out += [(gene_folds(view.n_genes) == fold).to(module.device) for fold in range(N_FOLDS)]
    codes = np.empty((view.n_spots, len(left_out), field.n_factors), dtype=np.float32)
    for rows, core in _strips(view):
        tissue = Tissue(view, rows, module.device)
        for part, genes in enumerate(left_out):
            codes[rows[core], part] = field.solve(tissue, module.share, genes)[torch.from_numpy(core)].cpu().numpy()
    view.field = codes


def _strips(view: SpotView) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Spots to solve together, and the places among them of those whose codes are kept."""
    if view.n_spots <= STRIP_SPOTS:
        yield np.arange(view.n_spots), np.arange(view.n_spots)
        return
    order = in_strips(view.graph)
    for start in range(0, view.n_spots, STRIP_SPOTS):
        first, last = max(0, start - HALO_SPOTS), min(start + STRIP_SPOTS, view.n_spots)
        yield order[first : last + HALO_SPOTS], np.arange(start - first, last - first)
