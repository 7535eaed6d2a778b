"""LGDiST from and to SpatialData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._constants import IMPUTED_SUFFIX, STD_SUFFIX, Keys
from lgdist_scvi.data._regions import annotating_table, regions

from ._layers import LayersMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData


class SpatialDataMixin(LayersMixin):
    """Setup from a table of a SpatialData object, and completed layers written back to it."""

    setup_anndata: Callable[..., None]

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
            Regions to take; by default all that the table annotates.
        spatial_key
            Key of the positions in ``obsm`` of the table. Where it is missing, the centroids of the regions' shapes in
            their own coordinates are written to it.
        library_key
            Column of ``obs`` with the sections; by default that of the regions.
        **setup
            Further arguments of :meth:`setup_anndata`.

        Returns
        -------
        The AnnData that was registered, to be passed to the model: the table itself, or with `region` a copy of the rows
        of these regions.

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
                f"sdata.tables[{table_key!r}] annotates no {unknown} (found: {annotated}); correct region=..."
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

    def add_completed_table(
        self, sdata: SpatialData, *, table_key: str = "table", key_added: str = Keys.LAYER, **options: Any
    ) -> None:
        """Write the completed expression to a table of a SpatialData object, and to its zarr store if it has one.

        The layers are those of :meth:`add_completed_layer`. Rows of the table that the model was not given (other
        regions) get NaN. On disk, layers and provenance are added to the table, nothing else is touched.

        Parameters
        ----------
        sdata
            Object of the table that was registered with :meth:`setup_spatialdata`; changed in place.
        table_key
            Name of the table.
        key_added
            Name of the layer.
        **options
            Options of :meth:`add_completed_layer`.

        Raises
        ------
        ValueError
            If the table is not the one that the model was given, or as :meth:`add_completed_layer`.
        KeyError
            If there is no such table.
        RuntimeError, TypeError, FloatingPointError, MemoryError
            As :meth:`add_completed_layer`.

        Examples
        --------
        >>> table = lgdist_scvi.LGDiST.setup_spatialdata(sdata, layer="counts")
        >>> model = lgdist_scvi.LGDiST(table)
        >>> model.train()
        >>> model.add_completed_table(sdata)
        >>> "lgdist" in sdata.tables["table"].layers
        True
        """
        table, _, _ = annotating_table(sdata, table_key)
        rows = table.obs_names.get_indexer(self.adata.obs_names)
        if (rows < 0).any() or not table.var_names.equals(self.adata.var_names):
            raise ValueError(
                f"sdata.tables[{table_key!r}] has not the spots and genes of the model's AnnData; put the table that was "
                "registered into the object, or name the right one by table_key=..."
            )
        self.add_completed_layer(key_added=key_added, **options)
        names = [
            name
            for name in (key_added, f"{key_added}{IMPUTED_SUFFIX}", f"{key_added}{STD_SUFFIX}")
            if name in self.adata.layers
        ]
        if table is not self.adata:
            for name in names:
                values = self.adata.layers[name]
                full = (
                    np.zeros(table.shape, bool) if values.dtype == bool else np.full(table.shape, np.nan, values.dtype)
                )
                full[rows] = values
                table.layers[name] = full
            table.uns[key_added] = self.adata.uns[key_added]
        if sdata.is_backed() and f"tables/{table_key}" in sdata.elements_paths_on_disk():
            _write_layers(sdata, table_key, names, key_added)


def _write_layers(sdata: SpatialData, table_key: str, names: list[str], key_added: str) -> None:
    """Add layers to the table on disk; rewriting the table would put its counts at risk."""
    import zarr
    from anndata.io import write_elem

    table = sdata.tables[table_key]

    def part(name: str) -> zarr.Group:
        return zarr.open_group(sdata.path, path=f"tables/{table_key}/{name}", mode="r+", use_consolidated=False)

    for name in names:
        write_elem(part("layers"), name, table.layers[name])
    write_elem(part("uns"), key_added, table.uns[key_added])
    # Readers go by the consolidated metadata, which does not know of the new arrays yet.
    sdata.write_consolidated_metadata()
