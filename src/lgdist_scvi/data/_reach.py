"""Check of the largest distance of neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from lgdist_scvi._checks import check_positive

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LONELY = 0.5
"""Share of spots without a neighbour above which the distance is in another unit than the positions."""


def check_reach(positions: NDArray[np.float64], max_distance: float | None, spatial_key: str) -> None:
    """Refuse a largest distance that leaves most spots without a neighbour.

    Parameters
    ----------
    positions
        Positions, ``(n_spots, 2)`` or ``(n_spots, 3)``.
    max_distance
        Largest distance of neighbours, in the unit of `positions`; None for no limit.
    spatial_key
        Key of the positions in ``obsm``.

    Raises
    ------
    ValueError
        If the distance is no number above 0, or leaves more than half of the spots without a neighbour.
    """
    if max_distance is None:
        return
    check_positive(max_distance=max_distance)
    nearest = cKDTree(positions).query(positions, k=2)[0][:, 1]
    lonely = float((nearest > max_distance).mean())
    if lonely > MOST_LONELY:
        raise ValueError(
            f"max_distance={max_distance:g} leaves {lonely:.0%} of the spots without a neighbour: it must be in the unit of "
            f"adata.obsm[{spatial_key!r}], in which the nearest spot is {np.median(nearest):.3g} away (median)."
        )
