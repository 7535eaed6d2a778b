"""Spatial neighbourhoods: built once as a sparse graph, read as index arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from lgdist_scvi._constants import Keys
from lgdist_scvi._quiet import quiet

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

# On a hexagonal grid the second ring lies at 1.73 pitches and on a square grid at 2, so 1.5 drops the substitutes of
# missing neighbours at an edge and keeps the neighbours of a complete neighbourhood, at most 1.41 pitches away.
MAX_DISTANCE_FACTOR = 1.5


def library_codes(libraries: ArrayLike | None, n_obs: int) -> NDArray[np.intp]:
    """Number the libraries, and return the number of each spot's library.

    Parameters
    ----------
    libraries
        Library of every spot, shape ``(n_spots,)``; None when all spots are of one library.
    n_obs
        Number of spots.

    Returns
    -------
    Codes of shape ``(n_spots,)``.

    Raises
    ------
    ValueError
        If `libraries` has another length or missing values.
    """
    if libraries is None:
        return np.zeros(n_obs, dtype=np.intp)
    codes, _ = pd.factorize(pd.Series(libraries), use_na_sentinel=True)
    if len(codes) != n_obs:
        raise ValueError(f"libraries has {len(codes)} entries for {n_obs} spots; pass one library per spot.")
    if (codes < 0).any():
        raise ValueError(f"libraries is missing for {(codes < 0).sum()} spots; name the library of every spot.")
    return codes


def spatial_graph(
    coordinates: NDArray, libraries: ArrayLike | None, n_neighbors: int, max_distance: float | None = None
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Graph of the nearest spots within each library, from squidpy's k-nearest-neighbour builder.

    Row `i` marks the `n_neighbors` nearest spots of spot `i` in its library, never itself. Neighbours farther than
    `max_distance`, by default 1.5 times the library's median distance to the `n_neighbors`-th neighbour, are left out: they
    lie across a gap or replace spots beyond the edge of the section. In a library of `n_neighbors` spots or fewer, all pairs within that
    distance are linked.

    Parameters
    ----------
    coordinates
        Positions of shape ``(n_spots, 2)`` or ``(n_spots, 3)``, in any unit.
    libraries
        Library of every spot, shape ``(n_spots,)``; None when all spots are of one library.
    n_neighbors
        Neighbours per spot.
    max_distance
        Largest distance of neighbours, in the unit of `coordinates`; None for that of each library.

    Returns
    -------
    Two matrices of shape ``(n_spots, n_spots)`` with the same sparsity pattern: connectivities, 1 on every edge, and
    distances in the unit of `coordinates`. Spots at the same position have a stored distance of 0, so read edges from
    the connectivities.
    """
    coordinates = np.asarray(coordinates, dtype=np.float64)
    n_obs = len(coordinates)
    codes = library_codes(libraries, n_obs)
    # Sorted by position within a library, so that ties in distance do not depend on the order of the spots.
    order = np.lexsort((*coordinates.T, codes))
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1]) if n_obs else []

    rows, cols, lengths = [], [], []
    for spots in members:
        row, col, length = _library_edges(coordinates[spots], n_neighbors, max_distance)
        rows.append(spots[row])
        cols.append(spots[col])
        lengths.append(length)
    row, col, length = (np.concatenate(part) if part else np.empty(0) for part in (rows, cols, lengths))

    shape = (n_obs, n_obs)
    # The same conversion keeps explicit zeros in both, so both have the same pattern.
    connectivities = sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, col)), shape=shape)
    distances = sparse.csr_matrix((length.astype(np.float64), (row, col)), shape=shape)
    connectivities.sort_indices()
    distances.sort_indices()
    return connectivities, distances


def _library_edges(
    coordinates: NDArray, n_neighbors: int, max_distance: float | None
) -> tuple[NDArray, NDArray, NDArray]:
    """Sources, targets and lengths of the edges within one library."""
    n_obs = len(coordinates)
    k = min(n_neighbors, n_obs - 1)
    if k < 1:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp), np.empty(0)
    with quiet():
        from squidpy.gr.neighbors import KNNBuilder

    # The builder of squidpy.gr.spatial_neighbors_knn, which itself would log a message for every library.
    edges = KNNBuilder(n_neighs=k).build(coordinates)[0].tocoo()
    row, col = edges.row.astype(np.intp), edges.col.astype(np.intp)
    # squidpy eliminates zero distances, so lengths are taken from the positions.
    length = np.linalg.norm(coordinates[row] - coordinates[col], axis=1)
    if max_distance is None:
        reach = np.zeros(n_obs)
        np.maximum.at(reach, row, length)
        max_distance = MAX_DISTANCE_FACTOR * float(np.median(reach)) or np.inf
    near = length <= max_distance
    return row[near], col[near], length[near]


def graph_params(
    *, spatial_key: str, library_key: str | None, n_neighbors: int, max_distance: float | None = None
) -> dict[str, str | int | float]:
    """Parameters that identify a graph of :func:`add_spatial_graph`, as stored in ``uns``.

    Parameters
    ----------
    spatial_key
        Key of the positions in ``obsm``.
    library_key
        Column of ``obs`` with the libraries; left out when None, since h5ad has no portable null.
    n_neighbors
        Neighbours per spot.
    max_distance
        Largest distance of neighbours; left out when None.

    Returns
    -------
    Plain values only.
    """
    params: dict[str, str | int | float] = {
        "method": "knn",
        "metric": "euclidean",
        "n_neighbors": int(n_neighbors),
        "max_distance_factor": MAX_DISTANCE_FACTOR,
        "spatial_key": spatial_key,
    }
    if library_key is not None:
        params["library_key"] = library_key
    if max_distance is not None:
        params["max_distance"] = float(max_distance)
    return params


def add_spatial_graph(
    adata: AnnData,
    *,
    spatial_key: str,
    library_key: str | None,
    n_neighbors: int,
    max_distance: float | None = None,
    key_added: str = Keys.NEIGHBORS,
) -> None:
    """Build the spatial graph and store it as squidpy and scanpy do.

    Writes ``obsp[f"{key_added}_connectivities"]``, ``obsp[f"{key_added}_distances"]`` and
    ``uns[f"{key_added}_neighbors"]``.

    Parameters
    ----------
    adata
        Annotated spots; changed in place.
    spatial_key
        Key of the positions in ``obsm``.
    library_key
        Column of ``obs`` with the libraries; None for one library.
    n_neighbors
        Neighbours per spot.
    max_distance
        Largest distance of neighbours, in the unit of the positions; None for 1.5 times that which is usual in each library.
    key_added
        Prefix of the keys written.
    """
    libraries = None if library_key is None else adata.obs[library_key]
    positions = np.asarray(adata.obsm[spatial_key])
    connectivities, distances = spatial_graph(positions, libraries, n_neighbors, max_distance)
    names = {kind: f"{key_added}_{kind}" for kind in ("connectivities", "distances")}
    adata.obsp[names["connectivities"]] = connectivities
    adata.obsp[names["distances"]] = distances
    adata.uns[f"{key_added}_neighbors"] = {
        "connectivities_key": names["connectivities"],
        "distances_key": names["distances"],
        "params": graph_params(
            spatial_key=spatial_key, library_key=library_key, n_neighbors=n_neighbors, max_distance=max_distance
        ),
    }


def graph_edges(graph: sparse.spmatrix | sparse.sparray | NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Edges of a graph, sorted by source and target, without self-loops or stored zeros.

    Parameters
    ----------
    graph
        Weights of shape ``(n_spots, n_spots)``, sparse or dense.

    Returns
    -------
    Sources (int64), targets (int64) and weights, each of shape ``(n_edges,)``.
    """
    csr = sparse.csr_matrix(graph)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    row = np.repeat(np.arange(csr.shape[0], dtype=np.int64), np.diff(csr.indptr))
    col = csr.indices.astype(np.int64)
    real = (csr.data != 0) & (row != col)
    if real.all():
        return row, col, csr.data
    return row[real], col[real], csr.data[real]


def edge_lengths(distances: sparse.spmatrix | sparse.sparray | NDArray, row: NDArray, col: NDArray) -> NDArray:
    """Lengths of given edges.

    Parameters
    ----------
    distances
        Distances of shape ``(n_spots, n_spots)``, sparse or dense.
    row, col
        Sources and targets of the edges, shape ``(n_edges,)``.

    Returns
    -------
    Float64 array of shape ``(n_edges,)``. An edge without a stored distance takes that of the reverse edge
    (symmetrised connectivities may come with one-sided distances), else 0: sparse formats drop the distance between
    spots at the same position.
    """
    n_obs = distances.shape[1]
    source, target, length = graph_edges(distances)
    key = source * n_obs + target  # sorted, because the edges are
    forward, found = _lookup(key, length, row * n_obs + col)
    if found.all():
        return forward
    backward, _ = _lookup(key, length, col * n_obs + row)
    return np.where(found, forward, backward)


def _lookup(keys: NDArray, values: NDArray, queries: NDArray) -> tuple[NDArray, NDArray]:
    """Values of the queried keys (0 where absent) among sorted keys, and whether they are present."""
    if len(keys) == 0:
        return np.zeros(len(queries)), np.zeros(len(queries), dtype=bool)
    place = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    found = keys[place] == queries
    return np.where(found, values[place], 0.0).astype(np.float64), found


def neighbor_index(
    connectivities: sparse.spmatrix,
    distances: sparse.spmatrix | None,
    n_neighbors: int,
    names: NDArray[np.uint64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Read a graph as arrays with a fixed number of neighbours per spot, nearest first.

    Parameters
    ----------
    connectivities
        Edges of shape ``(n_spots, n_spots)``: row `i` marks the neighbours of spot `i`.
    distances
        Distances along the edges; None orders by descending connectivity instead.
    n_neighbors
        Columns of the result; rows with more neighbours keep the nearest.
    names
        Number of each spot by which ties are broken, whatever the order of the spots, ``(n_spots,)``.

    Returns
    -------
    Index (int64), distance (float32, 0 without `distances`) and mask (True where a neighbour exists), each of shape
    ``(n_spots, n_neighbors)``. Missing neighbours have the spot's own index, distance 0 and mask False. Ties that `names`
    leave are broken by row number.
    """
    n_obs = connectivities.shape[0]
    row, col, weight = graph_edges(connectivities)
    length = np.zeros(len(row)) if distances is None else edge_lengths(distances, row, col)
    rank_by = -weight if distances is None else length
    order = np.lexsort((col, col if names is None else names[col], rank_by, row))
    row, col, length = row[order], col[order], length[order]
    first = np.searchsorted(row, np.arange(n_obs))
    slot = np.arange(len(row)) - first[row]
    keep = slot < n_neighbors
    row, col, length, slot = row[keep], col[keep], length[keep], slot[keep]

    index = np.repeat(np.arange(n_obs, dtype=np.int64)[:, None], n_neighbors, axis=1)
    distance = np.zeros((n_obs, n_neighbors), dtype=np.float32)
    mask = np.zeros((n_obs, n_neighbors), dtype=bool)
    index[row, slot] = col
    distance[row, slot] = length
    mask[row, slot] = True
    return index, distance, mask
