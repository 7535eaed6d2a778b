"""Entries held out of training, for early stopping and for evaluation."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_share

MAX_HOLDOUT_SPOTS = 2000
"""Maximum number of spots with held-out entries: enough to evaluate, few enough to be quick."""


def holdout_entries(hidden: sparse.csr_matrix, fraction: float, seed: int) -> sparse.csr_matrix:
    """Draw observed entries to hold out, zeros with the same probability as counts.

    Parameters
    ----------
    hidden
        True where an entry is unobserved, ``(n_spots, n_genes)``; such entries are not drawn.
    fraction
        Share of the entries of a spot to hold out, in [0, 1).
    seed
        Seed of the random numbers, which depend on nothing else but the shape.

    Returns
    -------
    True where held out, same shape, in at most :data:`MAX_HOLDOUT_SPOTS` spots.

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
    drawn &= ~hidden[spots].toarray()
    row, col = np.nonzero(drawn)
    return sparse.csr_matrix((np.ones(len(row), dtype=bool), (spots[row], col)), shape=hidden.shape)
