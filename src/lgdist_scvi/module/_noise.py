"""Standard normal noise of a tissue that belongs to its spots and edges, whichever of them are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.special import ndtri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lgdist_scvi.data._tissue import Tissue

# Odd multipliers and shifts of SplitMix64 (Steele, Lea & Flood 2014), whose outputs pass tests of randomness.
_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SPOTS, _EDGES = 1, 2  # beside 0, for the counts of the spots


class Noise(NamedTuple):
    """Standard normal numbers that a draw of a Markov field is made of."""

    own: torch.Tensor
    """For the counts of the spots, ``(n_spots, n_factors)``."""
    spots: torch.Tensor
    """For the spots, ``(n_spots, n_factors)``."""
    edges: torch.Tensor
    """For the edges between spots, ``(n_edges, n_factors)``."""


def noise_of(tissue: Tissue, n_factors: int, seed: int, draw: int) -> Noise:
    """Noise of one draw.

    It depends on the numbers of the spots in their section, so parts of a tissue that overlap share that of their common spots.

    Parameters
    ----------
    tissue
        Some spots.
    n_factors
        Factors of the field.
    seed, draw
        Seed and number of the draw.
    """
    spots, edges = tissue.rows.astype(np.uint64), np.sort(tissue.rows[tissue.edges], axis=1).astype(np.uint64)
    keys = (spots, spots, edges[:, 0] * np.uint64(1 << 32) + edges[:, 1])
    return Noise(*(_normal(key, n_factors, (seed, draw, kind)) for kind, key in enumerate(keys)))


def _normal(keys: NDArray[np.uint64], n_columns: int, stream: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers ``(n_keys, n_columns)`` that each depend on their key, column and stream."""
    state: NDArray[np.uint64] = np.zeros(1, dtype=np.uint64)
    for number in stream:
        state = _mixed(np.add(state, int(number), dtype=np.uint64))
    columns = np.arange(n_columns, dtype=np.uint64)
    bits = _mixed(np.add(_mixed(np.add(keys, state, dtype=np.uint64))[:, None], columns, dtype=np.uint64))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / (1 << 53)
    return torch.from_numpy(ndtri(uniform).astype(np.float32))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = bits + _STEP
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
