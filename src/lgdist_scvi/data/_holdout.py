"""Entries held out of training, for early stopping and for evaluation."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_share

from ._hidden import Hidden

MAX_HOLDOUT_SPOTS = 2000
"""Maximum number of spots with held-out entries: enough to evaluate, few enough to be quick."""


def holdout_entries(hidden: Hidden, fraction: float, seed: int) -> sparse.csr_matrix:
    """Draw observed entries to hold out, zeros with the same probability as counts.

    Parameters
    ----------
    hidden
        Unobserved entries, which are not drawn.
    fraction
        Share of the entries of a spot to hold out, in [0, 1).
    seed
        Seed of the random numbers, which depend on nothing else but the shape.

    Returns
    -------
    True where held out, ``(n_spots, n_genes)``; in at most :data:`MAX_HOLDOUT_SPOTS` spots.

    Raises
    ------
    ValueError
        If `fraction` is out of range.
    """
    check_share(fraction=fraction)
    n_spots, n_genes = hidden.shape
    rng = np.random.default_rng(seed)
    spots = np.sort(rng.permutation(n_spots)[:MAX_HOLDOUT_SPOTS])
    drawn = rng.random((len(spots), n_genes), dtype=np.float32) < fraction
    drawn &= ~hidden[spots]
    row, col = np.nonzero(drawn)
    return sparse.csr_matrix((np.ones(len(row), dtype=bool), (spots[row], col)), shape=hidden.shape)
