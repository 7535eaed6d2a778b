"""Genes in the registry, and the check of the genes of new data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.table
from anndata import AnnData
from scvi.data.fields import LayerField

from ._entries import listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


SHOWN = 200
"""Genes that the view of the registry lists."""


class CountsField(LayerField):
    """Counts; the view of the registry lists the genes, which new data must have in the same order."""

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Format the genes for ``view_anndata_setup``.

        Parameters
        ----------
        state_registry
            State of the field.

        Returns
        -------
        One row.
        """
        names = [str(name) for name in state_registry[self.COLUMN_NAMES_KEY]]
        table = rich.table.Table(title=f"{self.registry_key} State Registry")
        for name in ("Source Location", "Genes", "var_names"):
            table.add_column(name, justify="center")
        where = "adata.X" if self.attr_key is None else f"adata.layers['{self.attr_key}']"
        more = "" if len(names) <= SHOWN else f" and {len(names) - SHOWN} more; all are in model.adata.var_names"
        table.add_row(where, str(len(names)), ", ".join(names[:SHOWN]) + more, style="green")
        return table


def validate_genes(var_names_expected: Sequence[str] | NDArray, adata: AnnData) -> None:
    """Check that new data has the genes of the model, in its order.

    Parameters
    ----------
    var_names_expected
        Genes of the model.
    adata
        Annotated spots.

    Raises
    ------
    ValueError
        If genes are missing, additional, duplicated or in another order.
    """
    check_type(adata)
    expected, found = pd.Index(var_names_expected).astype(str), pd.Index(adata.var_names).astype(str)
    if found.equals(expected):
        return
    missing = expected.difference(found, sort=False)
    extra = found.difference(expected, sort=False)
    remedy = (
        "adata = adata[:, model_genes].copy(), with model_genes = model.adata.var_names, or of a saved model "
        'LGDiST.load_registry(folder)["field_registries"]["X"]["state_registry"]["column_names"]'
    )
    if len(missing):
        raise ValueError(
            f"adata lacks {len(missing)} of the model's {len(expected)} genes: {listing(missing)}. Add them, with "
            f"False in the observed layer if they were not measured, then order the genes with {remedy}."
        )
    if len(extra):
        raise ValueError(f"adata has {len(extra)} genes that the model does not have: {listing(extra)}. Use {remedy}.")
    if len(found) != len(expected):
        raise ValueError(f"adata has duplicated genes: {listing(found[found.duplicated()].unique())}. Use {remedy}.")
    place = int(np.flatnonzero(found != expected)[0])
    raise ValueError(
        f"adata has the model's genes in another order: position {place} holds {found[place]!r} where the model has "
        f"{expected[place]!r}. Use {remedy}."
    )


def check_type(adata: AnnData) -> None:
    """Refuse what is not an AnnData."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected an AnnData, got {type(adata).__name__}; pass one table, e.g. mdata.mod['rna'].")
