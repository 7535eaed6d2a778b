"""Names of groups of spots, which scvi-tools sorts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable


def names_of(column: pd.Series) -> Iterable[Any]:
    """All names of a column, also categories that no spot has."""
    return column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column


def are_plain(names: Iterable[Any]) -> bool:
    """Whether all names are text or numbers, which a file holds without code to be run when it is read."""
    return all(type(name) in (str, bool, int, float) or isinstance(name, np.generic) for name in names)


def check_sortable(column: pd.Series, key: str, argument: str, known: Iterable[Any] = ()) -> None:
    """Check that the names of a column can be sorted.

    Parameters
    ----------
    column
        Column of ``obs`` that groups spots.
    key, argument
        Name of the column, and of the argument that names it, for the message.
    known
        Names that a model knows, which are sorted together with those of the column.

    Raises
    ------
    TypeError
        If they cannot be sorted; the message names the kinds.
    """
    try:
        # Unhashable values make no categories.
        names = column.astype("category").cat.categories.to_numpy()
        np.unique(names)
        sorted([*names, *known])
    except TypeError as error:
        first: dict[str, str] = {}
        for name in (*known, *names_of(column)):
            first.setdefault(type(name).__name__, repr(name))
        found = ", ".join(f"{kind} ({name})" for kind, name in first.items())
        raise TypeError(
            f"adata.obs[{key!r}] ({argument}) has names that cannot be sorted: {found}. Make them text: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].map(str)."
        ) from error
