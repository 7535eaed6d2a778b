"""Training curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lgdist_scvi.pl._axes import axes_grid, save_figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

# Blue and vermilion of the colour-blind safe palette of Okabe & Ito.
_CURVES = {
    "train_loss": {"label": "training", "color": "#0072B2", "linestyle": "-"},
    "validation_loss": {"label": "validation", "color": "#D55E00", "linestyle": "--"},
}


def history(
    model_or_history: Any | Mapping[str, Mapping[str, pd.DataFrame]],
    *,
    axes: Any = None,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw the training and validation loss of each training phase.

    Parameters
    ----------
    model_or_history
        A trained model, or its ``history``: for each phase the curves by name, each a table ``(n_epochs, 1)`` of losses
        (no unit).
    axes
        Matplotlib axes, one per phase; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes, ``(n_phases,)``.

    Raises
    ------
    ValueError
        If nothing has been trained, or the number of axes differs from the number of phases.
    FileNotFoundError
        If the folder of `save` does not exist.

    Examples
    --------
    >>> axes = lgdist_scvi.pl.history(model)
    """
    phases = getattr(model_or_history, "history", model_or_history)
    curves = {phase: _losses(logged or {}) for phase, logged in (phases or {}).items()}
    curves = {phase: losses for phase, losses in curves.items() if losses}
    if not curves:
        raise ValueError("The history holds no loss; call model.train() first.")
    panels = axes_grid(axes, 1, len(curves), (4.2, 3.0)).ravel()
    for ax, (phase, losses) in zip(panels, curves.items(), strict=True):
        for name, values in losses.items():
            # A single epoch is drawn as a point.
            ax.plot(values.index, values, marker="o" if len(values) == 1 else None, **_CURVES[name])
        ax.set(title=phase, xlabel="epoch", ylabel="loss")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    save_figure(panels, save)
    return panels


def _losses(logged: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """The curves to draw, without epochs at which they were not computed."""
    found = {name: logged[name].iloc[:, 0].astype(float).dropna() for name in _CURVES if name in logged}
    return {name: values for name, values in found.items() if len(values)}
