"""Fits the latent field to the spots of a view, and solves their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi.data._tissue import Tissue, in_strips

from . import _field_fit
from ._folds import N_FOLDS, gene_folds
from ._noise import noise_of
from ._similarity import References, similar_spots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._lgdist import LGDiSTModule

FIT_ENTRIES = 1 << 24
"""Maximum number of entries that the field is fitted to: 16,000 spots of 1,024 genes."""
FIT_STRIPS = 4
"""Parts of a larger tissue that it is then fitted to."""
STRIP_SPOTS = 32768
"""Maximum number of spots whose codes are solved together. A larger tissue is solved in strips, each with what is beside it."""
FOLD_STRIPS = 2
"""Strips in which codes without a fold of the genes are solved, where they are wanted of a part of the tissue."""
HALO_SPOTS = 4096
SPREAD_DRAWS = 16
"""Draws from which the variance of the posterior is estimated, if no more are asked for."""


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
    _field_fit.fit(module.field, Tissue(view, rows, module.device), module.share, seed)


def solve_field(
    module: LGDiSTModule,
    view: SpotView,
    *,
    folded: int = 0,
    spread: bool = False,
    n_draws: int = 0,
    seed: int = 0,
) -> None:
    """Solve the codes of all spots of the view from its visible entries.

    Parameters
    ----------
    module
        Module with a fitted field, or without one.
    view
        Visible counts; its codes are set, ``(n_spots, 1, n_factors)``, or with `folded` ``(n_spots, n_parts, n_factors)``.
    folded
        Maximum number of spots, in strips spread over the tissue, for which codes are also solved from which a fold of the genes
        is left out in all spots, and which know no entry of these genes. They are NaN elsewhere.
    spread
        Also estimate the variance of what the neighbours say of the codes, ``(n_spots, n_factors)``.
    n_draws, seed
        Estimate it, and also draw from the posterior around the codes, jointly over the spots, ``(n_spots, n_draws, n_factors)``.
    """
    field = module.field
    if field is None:
        return
    left_out: list[torch.Tensor | None] = [None]
    folds = list(_strips(view, folded)) if folded else []
    references = [References(view, np.arange(view.n_spots), left_out)]
    if folds:
        left_out += [(gene_folds(view.n_genes) == fold).to(module.device) for fold in range(N_FOLDS)]
        known = np.sort(np.concatenate([rows[core] for rows, core in folds]))
        references.append(References(view, known, left_out[1:]))
    codes = np.full((view.n_spots, len(left_out), field.n_factors), np.nan, dtype=np.float32)
    draws = np.empty((view.n_spots, n_draws, field.n_factors), dtype=np.float32)
    spread = spread or n_draws > 0
    spreads = np.empty((view.n_spots, field.n_factors if spread else 0), dtype=np.float32)
    for rows, core in _strips(view, view.n_spots):
        tissue, kept = Tissue(view, rows, module.device), torch.from_numpy(core)
        solved = field.solve(tissue, module.share)
        codes[rows[core], 0] = solved.codes[kept].cpu().numpy()
        references[0].add(field, tissue, core, solved, 0)
        if spread:
            noise = (noise_of(tissue, field.n_factors, seed, draw) for draw in range(max(n_draws, SPREAD_DRAWS)))
            drawn = torch.stack([solved.precision.sample(one) for one in noise], dim=1)
            draws[rows[core]] = drawn[kept, :n_draws].cpu().numpy()
            spreads[rows[core]] = solved.precision.spread(drawn)[kept].cpu().numpy()
    for rows, core in folds:
        tissue, kept = Tissue(view, rows, module.device), torch.from_numpy(core)
        for fold, genes in enumerate(left_out[1:]):
            solved = field.solve(tissue, module.share, genes)
            codes[rows[core], 1 + fold] = solved.codes[kept].cpu().numpy()
            references[1].add(field, tissue, core, solved, fold)
    view.field, view.draws, view.spread = codes, draws, spreads
    view.similar = similar_spots(view, field, module.share, references)


def _strips(view: SpotView, wanted: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Spots to solve together, and the places among them of those whose codes are kept: all, or fewer in strips within the tissue."""
    if view.n_spots <= min(wanted, STRIP_SPOTS):
        yield np.arange(view.n_spots), np.arange(view.n_spots)
        return
    order, n_strips = in_strips(view.graph), max(FOLD_STRIPS, -(-wanted // STRIP_SPOTS))
    length = wanted / n_strips
    between = max(0, view.n_spots - wanted) / (n_strips + 1)
    for number in range(n_strips):
        start, stop = (round((number + 1) * between + at * length) for at in (number, number + 1))
        first = max(0, start - HALO_SPOTS)
        yield order[first : stop + HALO_SPOTS], np.arange(start - first, stop - first)
