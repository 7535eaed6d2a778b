"""Plots of the accuracy of held-out predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.metrics import count_coverage, gene_pearson, poisson_deviance
from lgdist_scvi.pl._axes import axes_grid, save_figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_COLUMNS = ("spot", "gene", "count", "depth", "expected", "std", "detected")
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "0.6"
_LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
_BINS = 12
_NAME_SIZE = (0.2, 0.05)  # of a label, as shares of a panel


def held_out(entries: pd.DataFrame, *, axes: Any = None, save: str | Path | None = None) -> NDArray[np.object_]:
    """Draw predicted against measured values of held-out entries.

    Left: log values of detected entries. Right: all entries, zeros included, grouped by expected count; the mean
    measured count of each group, with two standard errors, is drawn against the mean expected count. Points on the line
    mean that rates are neither too high nor too low.

    Parameters
    ----------
    entries
        Table of :meth:`lgdist_scvi.LGDiST.get_held_out_entries`, ``(n_entries, 7)``, in counts and log1p of counts per
        10,000.
    axes
        Two matplotlib axes; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes, ``(2,)``.

    Raises
    ------
    ValueError
        If the table has no row or lacks a column, no entry was detected, or the number of axes is not 2.
    FileNotFoundError
        If the folder of `save` does not exist.

    Examples
    --------
    >>> entries = model.get_held_out_entries()
    >>> left, right = lgdist_scvi.pl.held_out(entries)
    """
    entries = _checked(entries)
    found = entries[entries["count"] > 0]
    if not len(found):
        raise ValueError("None of the entries was detected, so there is no log value to draw.")
    left, right = panels = axes_grid(axes, 1, 2, (4.2, 3.8)).ravel()
    value, predicted = _log_value(found), found["detected"].to_numpy()
    ends = [min(value.min(), predicted.min()), max(value.max(), predicted.max())]
    drawn = left.hexbin(
        value, predicted, gridsize=50, bins="log", cmap="viridis", extent=(*ends, *ends), mincnt=1, linewidths=0
    )
    left.plot(ends, ends, color=_VERMILION, linewidth=1)
    left.figure.colorbar(drawn, ax=left, label="entries")
    r = np.corrcoef(value, predicted)[0, 1] if len(found) > 1 else np.nan
    left.set(title=f"detected entries, r = {r:.2f}", xlabel="measured, log1p counts per 10,000", ylabel="predicted")

    expected, count = entries["expected"].to_numpy(), entries["count"].to_numpy()
    order = np.argsort(expected)
    groups = [group for group in np.array_split(order, _BINS) if len(group)]
    mean = np.array([[expected[group].mean(), count[group].mean()] for group in groups])
    error = np.array([2 * count[group].std() / np.sqrt(len(group)) for group in groups])
    lower = np.minimum(error, 0.9 * mean[:, 1])  # a logarithmic scale has no zero
    right.errorbar(*mean.T, yerr=[lower, error], fmt="o", color=_BLUE, markersize=4, linewidth=1)
    ends = [mean[mean > 0].min() / 1.5, mean.max() * 1.5]
    right.plot(ends, ends, color=_VERMILION, linewidth=1)
    right.set(title="all entries, zeros included", xlabel="expected count", ylabel="mean measured count")
    right.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    _bare(panels)
    save_figure(panels, save)
    return panels


def gene_accuracy(
    entries: pd.DataFrame, *, n_labels: int = 5, axes: Any = None, save: str | Path | None = None
) -> NDArray[np.object_]:
    """Draw how well each gene is predicted, against its mean count.

    Left: share of the Poisson deviance of the gene's mean that is explained over all held-out entries (0: no better
    than the mean). Right: Pearson correlation of log values over detected entries. Genes with few counts leave little
    to explain.

    Parameters
    ----------
    entries
        Table of :meth:`lgdist_scvi.LGDiST.get_held_out_entries`, ``(n_entries, 7)``, in counts and log1p of counts per
        10,000.
    n_labels
        Genes to label at each end; labels that would overlap others are left out.
    axes
        Two matplotlib axes; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes, ``(2,)``.

    Raises
    ------
    ValueError
        If the table has no row or lacks a column, or the number of axes is not 2.
    FileNotFoundError
        If the folder of `save` does not exist.

    References
    ----------
    Deviance explained: :cite:p:`cameron1996rsquared`, as :func:`lgdist_scvi.metrics.deviance_explained`, gene by gene.

    Examples
    --------
    >>> entries = model.get_held_out_entries()
    >>> left, right = lgdist_scvi.pl.gene_accuracy(entries, n_labels=3)
    """
    entries = _checked(entries)
    panels = axes_grid(axes, 1, 2, (4.6, 3.8)).ravel()
    genes = entries.groupby("gene", observed=True)
    mean = genes["count"].mean()
    base = entries["depth"] * (genes["count"].transform("sum") / genes["depth"].transform("sum"))
    explained = pd.DataFrame(
        {
            "ours": poisson_deviance(entries["count"], entries["expected"]),
            "mean": poisson_deviance(entries["count"], base),
            "gene": entries["gene"],
        }
    )
    total = explained.groupby("gene", observed=True)[["ours", "mean"]].sum()
    d2 = (1 - total["ours"] / total["mean"].where(total["mean"] > 0)).reindex(mean.index)
    found = entries[entries["count"] > 0].assign(value=_log_value)
    correlations = {gene: _pearson(group) for gene, group in found.groupby("gene", observed=True)}
    pearson = pd.Series(correlations, dtype=float).reindex(mean.index)
    what = {"deviance explained": d2, "Pearson correlation, detected entries": pearson}
    for ax, (title, score) in zip(panels, what.items(), strict=True):
        score = score[mean > 0].dropna()
        ax.axhline(0, color=_GREY, linewidth=1)
        ax.scatter(mean[score.index], score, s=12, color=_BLUE, linewidths=0, alpha=0.7)
        ranked = score.sort_values().index
        for gene in _apart([*ranked[:n_labels], *ranked[::-1][:n_labels]], np.log10(mean[score.index]), score):
            ax.annotate(
                str(gene), (mean[gene], score[gene]), xytext=(3, 3), textcoords="offset points", fontsize="x-small"
            )
        ax.set(title=title, xlabel="mean count of the gene", xscale="log")
    _bare(panels)
    save_figure(panels, save)
    return panels


def _apart(genes: list[str], x: pd.Series, y: pd.Series) -> list[str]:
    """Genes whose labels, at positions x and y, do not overlap that of an earlier one."""
    places = pd.DataFrame({"x": x / max(np.ptp(x), 1e-12), "y": y / max(np.ptp(y), 1e-12)})
    kept: list[str] = []
    for gene in dict.fromkeys(genes):
        gap = (places.loc[kept] - places.loc[gene]).abs()
        if not ((gap["x"] < _NAME_SIZE[0]) & (gap["y"] < _NAME_SIZE[1])).any():
            kept.append(gene)
    return kept


def coverage(entries: pd.DataFrame, *, ax: Axes | None = None, save: str | Path | None = None) -> Axes:
    """Draw how often the measured count lies in the predicted interval, against how often it should.

    The intervals combine the uncertainty of the rate and the counting noise
    (:func:`lgdist_scvi.metrics.count_coverage`). In grey: counting noise alone, as if the rate were known.

    Parameters
    ----------
    entries
        Table of :meth:`lgdist_scvi.LGDiST.get_held_out_entries`, ``(n_entries, 7)``, in counts and log1p of counts per
        10,000.
    ax
        Matplotlib axes; None makes a new figure.
    save
        As for :func:`completion`.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If the table has no row or lacks a column.
    FileNotFoundError
        If the folder of `save` does not exist.

    References
    ----------
    :cite:p:`czado2009predictive`, as :func:`lgdist_scvi.metrics.count_coverage`.

    Examples
    --------
    >>> entries = model.get_held_out_entries()
    >>> ax = lgdist_scvi.pl.coverage(entries)
    >>> ax.figure.savefig("coverage.png")
    """
    entries = _checked(entries)
    ax = axes_grid(None if ax is None else [ax], 1, 1, (4.2, 3.8))[0, 0]
    counts, mean, std = (entries[name].to_numpy() for name in ("count", "expected", "std"))
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
    curves = {"rate and counting": (std, _BLUE, "-"), "counting alone": (np.zeros_like(std), _GREY, "--")}
    for label, (width, color, line) in curves.items():
        found = [count_coverage(counts, mean, width, level) for level in _LEVELS]
        ax.plot(_LEVELS, found, color=color, linestyle=line, marker="o", markersize=3, label=label)
    ax.set(
        xlabel="promised",
        ylabel="covered",
        title="intervals of held-out counts",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    ax.legend(frameon=False)
    _bare([ax])
    save_figure(ax, save)
    return ax


def _checked(entries: pd.DataFrame) -> pd.DataFrame:
    if absent := [name for name in _COLUMNS if name not in entries]:
        raise ValueError(f"The table lacks {absent}; pass what model.get_held_out_entries() returns.")
    if not len(entries):
        raise ValueError("The table has no entry to draw.")
    return entries


def _log_value(entries: pd.DataFrame) -> NDArray[np.float64]:
    return np.log1p(entries["count"].to_numpy() / entries["depth"].to_numpy() * TARGET_SUM)


def _pearson(found: pd.DataFrame) -> float:
    return float(gene_pearson(found[["detected"]], found[["value"]])[0])


def _bare(panels: Any) -> None:
    for ax in panels:
        ax.spines[["top", "right"]].set_visible(False)
