"""The page of an audit as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi.pl._axes import axes_grid, save_figure

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from lgdist_scvi.tl._result import AuditResult

_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "0.6"
_LEAST_COUNTS = 100
_LEVELS = (0.5, 0.8, 0.95)


def audit(result: AuditResult, *, axes: Any = None, save: str | Path | None = None) -> NDArray[np.object_]:
    """Draw the answers of an audit.

    From left to right, above: completed over measured totals, deviance explained and coverage; below: log ratios between
    regions, p-values of decoys, and correlations between genes. Vermilion is what should be. A panel whose question could
    not be asked says so.

    Parameters
    ----------
    result
        Result of :func:`lgdist_scvi.tl.audit`.
    axes
        Six matplotlib axes; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes, ``(2, 3)``.

    Raises
    ------
    ValueError
        If the number of axes is not 6.
    FileNotFoundError
        If the folder of `save` does not exist.

    Examples
    --------
    >>> given = lgdist_scvi.tl.prepare_audit(adata, layer="counts", n_decoys=20)
    >>> given.layers["raw"] = given.layers["counts"].copy()  # instead of a completion
    >>> axes = lgdist_scvi.pl.audit(lgdist_scvi.tl.audit(given, "raw", scale="counts"))
    """
    panels = axes_grid(axes, 2, 3, (3.8, 3.3))
    genes = result.genes[~result.genes["decoy"]]
    totals, explained, covered, contrast, null, correlation = panels.ravel()

    frequent = genes[genes["measured"] >= _LEAST_COUNTS]
    _points(totals, frequent["mean"], frequent["total_ratio"])
    totals.axhline(1, color=_VERMILION, linewidth=1)
    _label(totals, result, "totals", "mean count of the gene", "completed / measured")
    _points(explained, frequent["mean"], frequent["deviance_explained"])
    explained.axhline(0, color=_GREY, linewidth=1)
    _label(explained, result, "deviance explained", "mean count of the gene", "share of the gene mean's deviance")
    levels = [genes[f"coverage_{level:g}"].mean() for level in _LEVELS]
    covered.plot([0, 1], [0, 1], color=_VERMILION, linewidth=1)
    covered.plot(_LEVELS, levels, color=_BLUE, marker="o", markersize=4)
    _label(covered, result, "coverage", "promised", "covered")
    covered.set(xlim=(0, 1), ylim=(0, 1))

    known = result.regions.dropna(subset=["completed_contrast", "measured_contrast"])
    known = known[known["gene"].isin(genes.index)]
    _cloud(contrast, known["measured_contrast"], known["completed_contrast"])
    _label(contrast, result, "contrast", "log ratio to the section, held-out counts", "completed")

    bins = np.linspace(0, 1, 21)
    for column, color, name in (("p_counts", _GREY, "counts"), ("p_completed", _BLUE, "completed")):
        values = result.null_tests[column].astype(float)
        if len(values):
            null.hist(
                values,
                bins=bins,
                weights=np.full(len(values), 20 / len(values)),
                histtype="step",
                color=color,
                label=name,
            )
    null.axhline(1, color=_VERMILION, linewidth=1)
    if len(result.null_tests):
        null.legend(frameon=False)
    _label(null, result, "null tests", "p-value of a decoy between halves of a region", "density")

    pairs = result.correlations.dropna()
    _cloud(correlation, pairs["noise_free"], pairs["completed"])
    _label(correlation, result, "correlations", "correlation without noise (estimate)", "completed")
    for ax in panels.ravel():
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(panels, save)
    return panels


def _points(ax: Axes, x: pd.Series, y: pd.Series) -> None:
    if y.notna().any():
        ax.scatter(x, y, s=10, color=_BLUE, linewidths=0, alpha=0.6)
        ax.set(xscale="log")


def _cloud(ax: Axes, x: pd.Series, y: pd.Series) -> None:
    """Many points, and the line on which they should lie."""
    if len(x):
        # Drawn as an image: a file of a hundred thousand points would be large.
        ax.scatter(x, y, s=4, color=_BLUE, linewidths=0, alpha=0.3, rasterized=True)
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        ax.plot(ends, ends, color=_VERMILION, linewidth=1)


def _label(ax: Axes, result: AuditResult, question: str, xlabel: str, ylabel: str) -> None:
    """Axes labels, and as the title the question and whether its answer is fine."""
    answers = result.summary[result.summary["question"] == question]
    asked = answers["fine"].notna().any()
    says = "not as it should be" if question in result.failed else "fine" if asked else "not asked"
    ax.set(title=f"{question}: {says}", xlabel=xlabel, ylabel=ylabel)
    if not asked:
        ax.text(0.5, 0.5, "not asked", transform=ax.transAxes, ha="center", va="center", color=_GREY)
