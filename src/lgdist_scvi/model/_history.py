"""Losses of the training phases: plain lists in a saved model, tables for users."""

from __future__ import annotations

import pandas as pd


def tables_of(metrics: dict[str, dict[str, list[float]]]) -> dict[str, pd.DataFrame]:
    """Table ``(n_epochs, 1)`` of each metric of a phase, indexed by epoch."""
    return {
        name: pd.DataFrame({name: values["value"]}, index=pd.Index(values["epoch"], name="epoch"))
        for name, values in metrics.items()
    }


def extended(old: dict[str, dict[str, list[float]]], new: dict[str, pd.DataFrame]) -> dict[str, dict[str, list[float]]]:
    """Append the epochs of a further call to the history."""
    merged = dict(old)
    for name, table in new.items():
        epochs, values = [int(epoch) for epoch in table.index], [float(value) for value in table.iloc[:, 0]]
        before = old.get(name, {"epoch": [], "value": []})
        start = before["epoch"][-1] + 1 if before["epoch"] else 0
        merged[name] = {"epoch": before["epoch"] + [start + e for e in epochs], "value": before["value"] + values}
    return merged
