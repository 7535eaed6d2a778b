"""Completed layers in the zarr store of a SpatialData object."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lgdist_scvi._exclusive import sole_writer
from lgdist_scvi._quiet import quiet
from lgdist_scvi.data._regions import annotating_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


class StoredTable(NamedTuple):
    """A table on disk, and where it has the spots and genes of that in memory."""

    path: Path
    """Folder of the table."""
    shape: tuple[int, int]
    """Number of spots and genes on disk."""
    rows: NDArray[np.intp]
    """Row on disk of every spot in memory, ``(n_spots,)``."""
    columns: NDArray[np.intp]
    """Column on disk of every gene in memory, ``(n_genes,)``."""
    layers: set[str]
    """Names of the layers on disk."""
    uns: dict[str, Any]
    """Unstructured annotation on disk."""


def stored_table(sdata: SpatialData, table_key: str) -> StoredTable | None:
    """Find the table of a SpatialData object in its store; None if it has no store or is not in it.

    Raises
    ------
    ValueError
        If a spot or gene of the table in memory is not in that on disk, or is another one there.
    """
    if not (sdata.is_backed() and f"tables/{table_key}" in sdata.elements_paths_on_disk()):
        return None
    from anndata.io import read_elem

    path = Path(sdata.path) / "tables" / table_key
    group = _group(path)
    table, _, region_key = annotating_table(sdata, table_key)
    instance_key = table.uns["spatialdata_attrs"]["instance_key"]
    with quiet():
        obs, var, uns = (read_elem(group[part]) for part in ("obs", "var", "uns"))
    rows, columns = _places(obs.index, table.obs_names), _places(var.index, table.var_names)
    where = f"sdata.tables[{table_key!r}] in the store {sdata.path}"
    remedy = f"write the table of the memory first, with sdata.write_element({table_key!r}, overwrite=True)"
    if rows is None or columns is None:
        raise ValueError(f"{where} lacks spots or genes of that in memory; {remedy}.")
    identity = [region_key, instance_key]
    if (
        not set(identity) <= set(obs)
        or (obs[identity].iloc[rows].astype(str).to_numpy() != table.obs[identity].astype(str).to_numpy()).any()
    ):
        # Names that were given anew may be those of other spots.
        raise ValueError(f"{where} has other spots under the names of those in memory; {remedy}.")
    return StoredTable(path, (len(obs), len(var)), rows, columns, set(_group(path / "layers")), uns)


def write_layers(sdata: SpatialData, stored: StoredTable, table: AnnData, names: list[str], key_added: str) -> None:
    """Bring layers of the table on disk to the state of that in memory, without rewriting the table and risking its counts.

    Everything is written to a folder beside and then moved, so that an interruption or a full disk changes nothing. Spots and genes that
    are on disk only get NaN.

    Parameters
    ----------
    sdata
        Object with a store.
    stored
        The table on disk.
    table
        The table in memory.
    names
        Names of the layers. Those that `table` does not have are removed.
    key_added
        Name of the provenance in ``uns``.
    """
    from anndata.io import write_elem

    store = Path(sdata.path)
    with (
        sole_writer(store.with_name(f".{store.name}.lock"), store),
        _scratch(store) as (folder, scratch),
        quiet(),
    ):
        for name in names:
            if name in table.layers:
                write_elem(scratch, name, _spread(table.layers[name], stored))
        write_elem(scratch.create_group("uns"), key_added, table.uns[key_added])
        try:
            # The provenance first: layers without it would be taken for the user's when the call is repeated.
            _move(folder / "uns" / key_added, stored.path / "uns" / key_added, folder)
            for name in names:
                _move(folder / name, stored.path / "layers" / name, folder)
        finally:
            # Readers use the consolidated metadata, which does not list the new arrays yet.
            sdata.write_consolidated_metadata()


def _places(there: Any, names: Any) -> NDArray[np.intp] | None:
    """Places of names in an index; None if one is absent or ambiguous."""
    places = there.get_indexer(names) if there.is_unique else np.full(1, -1)
    return None if (places < 0).any() else places


def _spread(values: NDArray, stored: StoredTable) -> NDArray:
    """Values in the rows and columns of the table on disk."""
    full = np.zeros(stored.shape, bool) if values.dtype == bool else np.full(stored.shape, np.nan, values.dtype)
    full[np.ix_(stored.rows, stored.columns)] = values
    return full


def _group(path: Path) -> zarr.Group:
    import zarr

    return zarr.open_group(path, mode="r", use_consolidated=False)


@contextmanager
def _scratch(store: Path) -> Iterator[tuple[Path, zarr.Group]]:
    """A zarr group in a temporary folder, on the file system of the store."""
    import zarr

    with tempfile.TemporaryDirectory(prefix=".lgdist_", dir=store) as name:
        folder = Path(name, "new")
        yield folder, zarr.open_group(folder, mode="w")


def _move(new: Path, place: Path, folder: Path) -> None:
    """Put what was written in its place, if it was, and what was there aside."""
    if place.exists():
        os.replace(place, folder.parent / f"old_{place.parent.name}_{place.name}")
    if new.exists():
        os.replace(new, place)
