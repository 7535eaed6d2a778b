"""The user's axes, or those of a new figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def axes_grid(axes: Any, n_rows: int, n_cols: int, panel_size: tuple[float, float]) -> NDArray[np.object_]:
    """Arrange axes in a grid.

    Parameters
    ----------
    axes
        One axes or an array of them, in row order; None makes a new figure.
    n_rows, n_cols
        Numbers of rows and columns of panels.
    panel_size
        Width and height of a panel of a new figure, in inches.

    Returns
    -------
    Object array of shape ``(n_rows, n_cols)``.

    Raises
    ------
    ValueError
        If the number of axes differs from the number of panels.
    """
    if axes is None:
        from matplotlib import pyplot as plt

        size = (panel_size[0] * n_cols, panel_size[1] * n_rows)
        return plt.subplots(n_rows, n_cols, figsize=size, squeeze=False, layout="constrained")[1]
    given = np.asarray(axes, dtype=object).ravel()
    if given.size != n_rows * n_cols:
        raise ValueError(
            f"axes holds {given.size} axes, but {n_rows * n_cols} panels are needed "
            f"({n_rows} row(s) of {n_cols}); pass as many axes, or None for a new figure."
        )
    return given.reshape(n_rows, n_cols)
