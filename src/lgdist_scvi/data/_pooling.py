"""Expression pooled over neighbourhoods of growing radius and over the section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ._hidden import Hidden, dense
from ._hops import hop_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOPS = (1, 2, 4)
"""Radii of the pooled neighbourhoods in hops: about 6, 18 and 60 spots on a hexagonal grid."""
N_POOLS = len(HOPS) + 1
"""Pooled expressions per spot: the section and one for each radius."""
SECTION_PSEUDO_COUNTS = 20.0
"""Pseudo-counts that shrink the share of a section towards that of all sections."""
RADIUS_PSEUDO_COUNTS = 3.0
"""Pseudo-counts that shrink the share within a radius towards that within the next wider one."""
CACHE_BYTES = 1 << 29
"""Pooled neighbourhoods are kept, once computed, where those of all spots take no more memory than this."""
BLOCK_BYTES = 1 << 26
"""Size of the temporary arrays for a block of spots."""


class Pools:
    """Pooled expression around each spot, from what is visible of other spots.

    Parameters
    ----------
    counts
        Observed counts, ``(n_spots, n_genes)``; 0 where hidden.
    hidden
        Hidden entries.
    depth
        Depth of every spot in counts, ``(n_spots,)``.
    section, half
        Number of the section of every spot, and the half of it, 0 or 1, that the spot belongs to, ``(n_spots,)``.
    share
        Expected share of each gene in a spot's depth, ``(n_genes,)``.
    radii
        Spots within each of the :data:`HOPS`, as :func:`radii_of` gives them.
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        hidden: Hidden,
        depth: NDArray[np.float32],
        section: NDArray,
        half: NDArray,
        share: NDArray[np.float64],
        radii: list[sparse.csr_matrix],
    ) -> None:
        self._counts, self._depth, self._share, self._radii = counts, depth, share, radii
        # The depth of a spot does not count for a gene that is hidden in it.
        self._hidden_depth = hidden.times(depth)
        # Each spot gets the profile of the half of its section that it is not in. The profile of the whole section would contain
        # the spot's own counts, and that of the section without the spot would reveal them by subtraction.
        self._other_half = 2 * section + 1 - half
        n_spots = counts.shape[0]
        halves = sparse.csr_matrix(
            (np.ones(n_spots, dtype=np.float32), (2 * section + half, np.arange(n_spots))),
            shape=(2 * (int(section.max(initial=0)) + 1), n_spots),
        )
        self._half_total, self._half_depth = halves @ counts, self._visible_depth(halves)
        self._cache: NDArray[np.float32] | None = None
        self._cached = np.zeros(n_spots, dtype=bool)

    def of(self, rows: NDArray) -> NDArray[np.float32]:
        """Log ratio of each pooled share to the next wider one.

        Parameters
        ----------
        rows
            Spots, ``(n_rows,)``. Nothing is computed of others.

        Returns
        -------
        Log ratios ``(n_rows, n_pools, n_genes)``: of the section to all spots, then of each radius to the next wider.
        """
        n_spots, n_genes = self._counts.shape
        if n_spots * N_POOLS * n_genes * 4 > CACHE_BYTES:
            return self._pool(rows)
        if self._cache is None:
            self._cache = np.empty((n_spots, N_POOLS, n_genes), dtype=np.float32)
        missing = np.unique(rows[~self._cached[rows]])
        step = max(1, BLOCK_BYTES // (8 * n_genes))
        for start in range(0, len(missing), step):
            block = missing[start : start + step]
            self._cache[block] = self._pool(block)
        self._cached[missing] = True
        return self._cache[rows]

    def _pool(self, rows: NDArray) -> NDArray[np.float32]:
        other = self._other_half[rows]
        total, depth = self._half_total[other].toarray(), self._half_depth[other]
        wider = _shrink(total, depth, self._share[None], SECTION_PSEUDO_COUNTS)
        ratios = [np.log(wider / self._share)]
        for weights in reversed(self._radii):
            near = weights[rows]
            share = _shrink((near @ self._counts).toarray(), self._visible_depth(near), wider, RADIUS_PSEUDO_COUNTS)
            ratios.append(np.log(share / wider))
            wider = share
        return np.stack(ratios, axis=1).astype(np.float32)

    def _visible_depth(self, weights: sparse.csr_matrix) -> NDArray:
        """Depth of the pooled spots in which a gene is visible, ``(n_sums, n_genes)``; ``(n_sums, 1)`` where all are alike."""
        total = np.asarray(weights @ self._depth)[:, None]
        return np.maximum(total - dense(weights @ self._hidden_depth), 0)


def radii_of(connectivities: sparse.csr_matrix) -> list[sparse.csr_matrix]:
    """Mark the spots within each of the :data:`HOPS` of every spot, each ``(n_spots, n_spots)``."""
    return hop_weights(connectivities, HOPS)


def _shrink(total: NDArray, depth: NDArray, prior: NDArray, strength: float) -> NDArray:
    """Gamma-Poisson posterior mean of a share; the prior is worth `strength` expected counts."""
    return prior * (total + strength) / (prior * depth + strength)
