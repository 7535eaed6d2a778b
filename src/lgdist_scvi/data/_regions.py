"""Tables of a SpatialData object, and the shapes that their rows annotate."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


class Region(NamedTuple):
    """Spots of a table that annotate one element of shapes."""

    name: str
    """Name of the region."""
    rows: NDArray[np.int64]
    """Rows of the table, ``(n_spots,)``."""
    centers: NDArray[np.float64]
    """Centres x and y of their shapes, in the shapes' own coordinates, ``(n_spots, 2)``."""
    diameter: float
    """Median diameter of the shapes; for polygons, that of a circle of the same area."""


def annotating_table(sdata: SpatialData, table_key: str) -> tuple[AnnData, list[str], str]:
    """Table of a SpatialData object, the regions that it annotates, and its column of regions.

    Raises
    ------
    KeyError
        If there is no such table.
    ValueError
        If the table annotates no shapes.
    """
    from spatialdata.models import get_table_keys

    if table_key not in sdata.tables:
        raise KeyError(f"sdata.tables has no {table_key!r} (found: {list(sdata.tables)}); correct table_key=...")
    table = sdata.tables[table_key]
    if "spatialdata_attrs" not in table.uns:
        raise ValueError(
            f"sdata.tables[{table_key!r}] annotates no shapes: uns['spatialdata_attrs'] is missing. Make the table with "
            "spatialdata.models.TableModel.parse(adata, region=..., region_key=..., instance_key=...)."
        )
    annotated, region_key, _ = get_table_keys(table)
    return table, [annotated] if isinstance(annotated, str) else list(annotated), region_key


def regions(sdata: SpatialData, table: AnnData, names: Sequence[str]) -> Iterator[Region]:
    """Regions of a table that have at least one row.

    Raises
    ------
    KeyError
        If the shapes of a region are missing.
    ValueError
        If spots of the table have no shape.
    """
    from spatialdata.models import get_table_keys

    _, region_key, instance_key = get_table_keys(table)
    for name in names:
        rows = np.flatnonzero(table.obs[region_key].to_numpy() == name)
        if not len(rows):
            continue
        if name not in sdata.shapes:
            raise KeyError(
                f"sdata.shapes has no {name!r}, a region of the table (found: {list(sdata.shapes)}); add its shapes."
            )
        shapes, instances = sdata.shapes[name], table.obs[instance_key].to_numpy()[rows]
        if missing := sorted(set(instances) - set(shapes.index)):
            raise ValueError(
                f"sdata.shapes[{name!r}] lacks {len(missing)} spots of the table: {missing[:5]}; drop them."
            )
        shapes = shapes.loc[instances]
        centroid = shapes.geometry.centroid
        radius = shapes["radius"] if "radius" in shapes else np.sqrt(shapes.geometry.area / np.pi)
        yield Region(name, rows, np.column_stack([centroid.x, centroid.y]), 2 * float(np.median(radius)))
