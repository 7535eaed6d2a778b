"""LGDiST with SpatialData objects."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi.data._regions import annotating_table, table_positions, warn_of_fields_of_view

from ._base import LGDiSTBase

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


class SpatialDataMixin(LGDiSTBase):
    """Setup from a table of a SpatialData object."""

    @classmethod
    def setup_spatialdata(
        cls,
        sdata: SpatialData,
        layer: str | None = None,
        *,
        table_key: str = "table",
        region: str | Sequence[str] | None = None,
        spatial_key: str = "spatial",
        library_key: str | None = None,
        coordinate_system: str | None = None,
        **setup: Any,
    ) -> AnnData:
        """Register a table of a SpatialData object.

        Parameters
        ----------
        sdata
            Sections, as spatialdata-io reads them, with a table of spots, bins or cells.
        layer
            Layer of the table with raw counts; ``X`` by default.
        table_key
            Name of the table.
        region
            Regions to use; by default all that the table annotates.
        spatial_key
            Key of the positions in ``obsm`` of the table. If missing, it is set to the centroids of the shapes, labels or
            points that the table annotates: of shapes in their own coordinates, else in their first coordinate system.
        library_key
            Column of ``obs`` with the sections; by default the region column, or with `coordinate_system` one section.
        coordinate_system
            Coordinate system of all regions, if they are parts of one section such as the fields of view of CosMx. The
            positions are the centroids in it, in its unit; beside others in ``obsm[spatial_key]`` they are written to
            ``obsm[f"{spatial_key}_{coordinate_system}"]``.
        **setup
            Further arguments of :meth:`setup_anndata`.

        Returns
        -------
        The registered AnnData, to be passed to the model: the table itself, or with `region` a copy of the rows of these
        regions.

        Raises
        ------
        KeyError
            If table, regions or their elements are missing, or are not in the coordinate system.
        KeyError, TypeError, ValueError
            As :meth:`setup_anndata`.

        Examples
        --------
        >>> table = lgdist_scvi.LGDiST.setup_spatialdata(sdata, layer="counts")
        >>> model = lgdist_scvi.LGDiST(table)
        """
        table, annotated, region_key = annotating_table(sdata, table_key)
        one = region is not None and not isinstance(region, list | tuple)
        wanted: list[Any] = annotated if region is None else [region] if one else list(region)
        if unknown := [name for name in wanted if name not in annotated]:
            raise KeyError(
                f"sdata.tables[{table_key!r}] does not annotate {unknown} (found: {annotated}); correct region=..."
            )
        if region is not None:
            table = table[table.obs[region_key].isin(wanted).to_numpy()].copy()
        with _undone_if_refused(table.obsm):
            if coordinate_system is not None or spatial_key not in table.obsm:
                positions = table_positions(
                    sdata, table, wanted, spatial_key=spatial_key, coordinate_system=coordinate_system
                )
                if spatial_key in table.obsm:
                    spatial_key = f"{spatial_key}_{coordinate_system}"
                table.obsm[spatial_key] = positions
            if coordinate_system is None and library_key is None:
                library_key = region_key
                warn_of_fields_of_view(sdata, wanted, stacklevel=2)
            cls.setup_anndata(table, layer, spatial_key=spatial_key, library_key=library_key, **setup)
        return table


@contextmanager
def _undone_if_refused(entries: MutableMapping[str, Any]) -> Iterator[None]:
    """Set entries back, and remove new ones, if what follows raises an error."""
    before = dict(entries)
    try:
        yield
    except BaseException:
        for key in [key for key in entries if entries[key] is not before.get(key)]:
            del entries[key]
        entries.update({key: value for key, value in before.items() if key not in entries})
        raise


def put_into_table(table: AnnData, adata: AnnData, rows: NDArray[np.int64], names: list[str], key_added: str) -> None:
    """Copy completed layers to a table that holds the spots of `adata` in the given rows.

    Parameters
    ----------
    table
        Table of a SpatialData object, changed in place. Rows that `adata` does not have get NaN.
    adata
        Spots that were completed.
    rows
        Row of the table of every spot, ``(n_spots,)``.
    names
        Names of the layers. Those that `adata` does not have are removed from the table.
    key_added
        Name of the provenance in ``uns``.
    """
    for name in names:
        table.layers.pop(name, None)
        if name not in adata.layers:
            continue
        values = adata.layers[name]
        full = np.zeros(table.shape, bool) if values.dtype == bool else np.full(table.shape, np.nan, values.dtype)
        full[rows] = values
        table.layers[name] = full
    table.uns[key_added] = adata.uns[key_added]
