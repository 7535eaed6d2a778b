"""LGDiST with SpatialData objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi.data._regions import annotating_table, regions

from ._base import LGDiSTBase

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        **setup: Any,
    ) -> AnnData:
        """Register a table of a SpatialData object.

        Parameters
        ----------
        sdata
            Sections, with a table of spots that annotates circles or polygons.
        layer
            Layer of the table with raw counts; ``X`` by default.
        table_key
            Name of the table.
        region
            Regions to use; by default all that the table annotates.
        spatial_key
            Key of the positions in ``obsm`` of the table. If missing, it is set to the centroids of the shapes of the
            regions, in their own coordinates.
        library_key
            Column of ``obs`` with the sections; by default the region column.
        **setup
            Further arguments of :meth:`setup_anndata`.

        Returns
        -------
        The registered AnnData, to be passed to the model: the table itself, or with `region` a copy of the rows of these
        regions.

        Raises
        ------
        KeyError
            If table or regions are missing.
        KeyError, TypeError, ValueError
            As :meth:`setup_anndata`.

        Examples
        --------
        >>> table = lgdist_scvi.LGDiST.setup_spatialdata(sdata, layer="counts")
        >>> model = lgdist_scvi.LGDiST(table)
        """
        table, annotated, region_key = annotating_table(sdata, table_key)
        wanted = annotated if region is None else [region] if isinstance(region, str) else list(region)
        if unknown := [name for name in wanted if name not in annotated]:
            raise KeyError(
                f"sdata.tables[{table_key!r}] does not annotate {unknown} (found: {annotated}); correct region=..."
            )
        if region is not None:
            table = table[table.obs[region_key].isin(wanted).to_numpy()].copy()
        if spatial_key not in table.obsm:
            positions = np.full((table.n_obs, 2), np.nan)
            for part in regions(sdata, table, wanted):
                positions[part.rows] = part.centers
            table.obsm[spatial_key] = positions
        cls.setup_anndata(table, layer, spatial_key=spatial_key, library_key=library_key or region_key, **setup)
        return table


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
