"""Tables of a SpatialData object, and the shapes that their rows annotate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData

from lgdist_scvi._checks import check_label

from ._entries import listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    outlines: NDArray[np.object_]
    """Polygons, or the centres of circles, ``(n_spots,)``."""


def annotating_table(sdata: SpatialData, table_key: str) -> tuple[AnnData, list[str], str]:
    """Table of a SpatialData object, the regions that it annotates, and its column of regions.

    Raises
    ------
    KeyError
        If there is no such table, or a column that it names is missing.
    TypeError
        If a name is none.
    ValueError
        If the table annotates no shapes.
    """
    check_label(table_key=table_key)
    if table_key not in sdata.tables:
        raise KeyError(f"sdata.tables has no {table_key!r} (found: {list(sdata.tables)}); correct table_key=...")
    table = sdata.tables[table_key]
    attributes = table.uns.get("spatialdata_attrs")
    wanted = ("region", "region_key", "instance_key")
    given: dict[str, Any] = {name: attributes.get(name) if isinstance(attributes, Mapping) else None for name in wanted}
    if absent := [name for name, value in given.items() if value is None]:
        which = "is missing" if attributes is None else f"has no {', '.join(absent)}"
        raise ValueError(
            f"sdata.tables[{table_key!r}] annotates no shapes: uns['spatialdata_attrs'] {which}. Make the table with "
            "spatialdata.models.TableModel.parse(adata, region=..., region_key=..., instance_key=...)."
        )
    annotated, region_key, instance_key = given.values()
    check_label(region_key=region_key, instance_key=instance_key)
    if unknown := [key for key in (region_key, instance_key) if key not in table.obs]:
        raise KeyError(
            f"sdata.tables[{table_key!r}].obs has no {', '.join(map(repr, unknown))}, which uns['spatialdata_attrs'] names; correct "
            "it, or make the table with spatialdata.models.TableModel.parse(...)."
        )
    return table, [annotated] if isinstance(annotated, str) else list(annotated), region_key


def regions(sdata: SpatialData, table: AnnData, names: Sequence[str]) -> Iterator[Region]:
    """Regions of a table that have at least one row.

    Raises
    ------
    KeyError
        If the shapes of a region are missing.
    ValueError
        If spots of the table have no shape, or several.
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
        if missing := sorted(set(instances) - set(shapes.index), key=str):
            raise ValueError(
                f"sdata.shapes[{name!r}] lacks {len(missing)} spots of the table: {missing[:5]}; drop them."
            )
        if not shapes.index.is_unique:
            raise ValueError(
                f"sdata.shapes[{name!r}] has {int(shapes.index.duplicated().sum())} shapes with a name that another has; give each "
                "shape its own, or drop them."
            )
        shapes = shapes.loc[instances]
        centroid = shapes.geometry.centroid
        radius = shapes["radius"] if "radius" in shapes else np.sqrt(shapes.geometry.area / np.pi)
        centers = np.column_stack([centroid.x, centroid.y])
        yield Region(name, rows, centers, 2 * float(np.median(radius)), shapes.geometry.to_numpy())


def table_positions(
    sdata: SpatialData,
    table: AnnData,
    names: Sequence[str],
    *,
    spatial_key: str = "spatial",
    coordinate_system: str | None = None,
) -> NDArray[np.float64]:
    """Positions of the rows of a table.

    Parameters
    ----------
    sdata
        Object with the elements that the table annotates: shapes, labels or points.
    table
        Table.
    names
        Regions of the table.
    spatial_key
        Key of positions in ``obsm``, which are taken where they exist.
    coordinate_system
        Coordinate system in which positions are wanted, whatever is in ``obsm``; None for the elements' own coordinates, or,
        for labels and points, those of their first coordinate system.

    Returns
    -------
    Positions x and y, ``(n_spots, 2)``.

    Raises
    ------
    KeyError
        If an element is missing or is not in the coordinate system.
    ValueError
        If spots of the table have no instance in their element.
    """
    from spatialdata import get_centroids
    from spatialdata.models import get_table_keys
    from spatialdata.transformations import get_transformation

    if coordinate_system is None and spatial_key in table.obsm:
        return np.asarray(table.obsm[spatial_key])
    _, region_key, instance_key = get_table_keys(table)
    positions = np.full((table.n_obs, 2), np.nan)
    if coordinate_system is None:
        shapes = [name for name in names if name in sdata.shapes or name not in {*sdata.labels, *sdata.points}]
        for part in regions(sdata, table, shapes):
            positions[part.rows] = part.centers
        names = [name for name in names if name not in shapes]
    for name in names:
        rows = np.flatnonzero(table.obs[region_key].to_numpy() == name)
        if not len(rows):
            continue
        if name not in sdata:
            raise KeyError(
                f"sdata has no element {name!r}, a region of the table (found: {[found for _, found, _ in sdata]}); add it."
            )
        known = list(get_transformation(sdata[name], get_all=True))
        system = known[0] if coordinate_system is None else coordinate_system
        if system not in known:
            raise KeyError(
                f"sdata[{name!r}] is not in the coordinate system {system!r} (found: {known}); correct coordinate_system=..."
            )
        centers = get_centroids(sdata[name], coordinate_system=system).compute()
        instances = table.obs[instance_key].to_numpy()[rows]
        if missing := sorted(set(instances) - set(centers.index)):
            raise ValueError(
                f"sdata[{name!r}] lacks {len(missing)} instances of the table: {listing(missing)}; drop them."
            )
        positions[rows] = centers.loc[instances, ["x", "y"]].to_numpy()
    return positions


def warn_of_fields_of_view(sdata: SpatialData, names: Sequence[str], *, stacklevel: int) -> None:
    """Say that regions which are placed in one coordinate system may be parts of one section, such as fields of view.

    Parameters
    ----------
    sdata
        Object with the elements that a table annotates.
    names
        Regions of the table.
    stacklevel
        As in :func:`warnings.warn`, from the caller of this function.
    """
    from spatialdata.transformations import Identity, get_transformation

    placed: list[dict[str, Any]] = [get_transformation(sdata[name], get_all=True) for name in names if name in sdata]
    if len(placed) < 2:
        return
    for system in sorted(set.intersection(*map(set, placed))):
        # What nobody placed is at the identity.
        if not any(isinstance(place[system], Identity) for place in placed):
            warnings.warn(
                f"The {len(placed)} regions {listing(list(names))} are all placed in the coordinate system {system!r}, and are "
                f"taken for sections of their own. If they are parts of one section (fields of view), pass "
                f"coordinate_system={system!r}, so that spots at their borders are neighbours.",
                UserWarning,
                stacklevel=stacklevel + 1,
            )
            return


def spots_of(
    data: AnnData | SpatialData, table_key: str, spatial_key: str, library_key: str | None
) -> tuple[AnnData, str | None]:
    """The AnnData itself, or a table of a SpatialData object with positions, and the column with the libraries.

    Parameters
    ----------
    data
        AnnData, or object with a table.
    table_key
        Name of the table.
    spatial_key
        Key of the positions in ``obsm``; of a table without, a copy that shares the counts has the centroids of its elements.
    library_key
        Column of ``obs`` with the libraries; None takes the regions of a table.

    Raises
    ------
    KeyError, ValueError
        As of :func:`table_positions`.
    """
    if isinstance(data, AnnData) or not hasattr(data, "tables"):
        return data, library_key
    table, names, region_key = annotating_table(data, table_key)
    if spatial_key not in table.obsm:
        positions = {spatial_key: table_positions(data, table, names, spatial_key=spatial_key)}
        parts = {"obs": table.obs, "var": table.var, "uns": table.uns, "layers": dict(table.layers)}
        table = AnnData(table.X, obsm=dict(table.obsm) | positions, **parts)
    return table, library_key or region_key
