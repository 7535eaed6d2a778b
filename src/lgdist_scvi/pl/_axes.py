"""The user's axes, or those of a new figure, and the file of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DOTS_PER_INCH = 300


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


def save_figure(axes: Any, save: str | Path | None) -> None:
    """Save the figure of some axes.

    Parameters
    ----------
    axes
        One axes of the figure or an array of them.
    save
        The file; its suffix says in which format. None saves nothing.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    if save is None:
        return
    if not Path(save).parent.is_dir():
        raise FileNotFoundError(
            f"save={str(save)!r} names the folder {Path(save).parent}, which does not exist; create it first."
        )
    figure = np.asarray(axes, dtype=object).ravel()[0].figure
    figure.figure.savefig(save, dpi=_DOTS_PER_INCH, bbox_inches="tight")
