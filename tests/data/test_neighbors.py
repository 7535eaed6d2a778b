"""The spatial graph against all pairs of spots."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lgdist_scvi._constants import Keys
from lgdist_scvi.data._hops import hop_weights
from lgdist_scvi.data._neighbors import add_spatial_graph, neighbor_index, spatial_graph


def all_pairs(coordinates, libraries, k):
    """Neighbours by brute force: a sorted list of (distance, spot) for every spot."""
    n = len(coordinates)
    libraries = np.zeros(n) if libraries is None else np.asarray(libraries)
    squared = ((coordinates[:, None, :] - coordinates[None, :, :]) ** 2).sum(-1)
    distance = np.sqrt(squared)
    nearest, reach = [], np.zeros(n)
    for i in range(n):
        peers = [(distance[i, j], j) for j in range(n) if j != i and libraries[j] == libraries[i]]
        nearest.append(sorted(peers)[:k])
        reach[i] = nearest[i][-1][0] if nearest[i] else 0
    limits = {library: 1.5 * np.median(reach[libraries == library]) for library in np.unique(libraries)}
    return [[pair for pair in row if pair[0] <= limits[libraries[i]]] for i, row in enumerate(nearest)]


def hex_grid(n_rows=12, n_cols=10, pitch=100.0):
    row, col = (grid.ravel() for grid in np.mgrid[0:n_rows, 0:n_cols])
    return pitch * np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(3) / 2])


def assert_is(index, distance, mask, expected):
    for i, row in enumerate(expected):
        n = len(row)
        assert mask[i].sum() == n
        assert mask[i, :n].all()
        np.testing.assert_array_equal(index[i, :n], [j for _, j in row])
        np.testing.assert_allclose(distance[i, :n], [d for d, _ in row], rtol=1e-5)
        assert (index[i, n:] == i).all()
        assert (distance[i, n:] == 0).all()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("k", [1, 6, 11])
@pytest.mark.parametrize("n_libraries", [None, 1, 4])
def test_matches_brute_force(dimensions, k, n_libraries):
    rng = np.random.default_rng(k)
    coordinates = rng.uniform(0, 1000, (150, dimensions))
    coordinates[17] += 5000  # too far from all others
    libraries = None if n_libraries is None else rng.integers(0, n_libraries, 150)
    connectivities, distances = spatial_graph(coordinates, libraries, k)
    index, distance, mask = neighbor_index(connectivities, distances, k)
    assert index.dtype == np.int64
    assert distance.dtype == np.float32
    assert mask.dtype == bool
    assert index.shape == distance.shape == mask.shape == (150, k)
    assert_is(index, distance, mask, all_pairs(coordinates, libraries, k))
    assert not mask[17].any()


def test_library_labels_of_any_type_and_interleaved():
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(0, 1, (90, 2))
    names = np.array(["b", "a", "c"] * 30)
    by_name = pd.Series(pd.Categorical(names, categories=["z", "c", "b", "a"]), index=[f"s{i}" for i in range(90)])
    reference, _ = spatial_graph(coordinates, names, 5)
    categorical, _ = spatial_graph(coordinates, by_name, 5)
    assert (reference != categorical).nnz == 0
    row, col = reference.nonzero()
    assert (names[row] == names[col]).all()


@pytest.mark.parametrize(("libraries", "match"), [(["a", None, "b"], "missing for 1 spot"), (["a"], "1 entries for 3")])
def test_libraries_must_be_complete(libraries, match):
    with pytest.raises(ValueError, match=match):
        spatial_graph(np.eye(3, 2), libraries, 1)


def test_hexagonal_grid_has_two_to_six_neighbors():
    coordinates = hex_grid()
    connectivities, distances = spatial_graph(coordinates, None, 6)
    degree = np.asarray(connectivities.sum(axis=1)).ravel().reshape(12, 10)
    assert (degree[1:-1, 1:-1] == 6).all()
    edge = np.ones((12, 10), dtype=bool)
    edge[1:-1, 1:-1] = False
    assert set(degree[edge]) == {2, 3, 4, 5}
    np.testing.assert_allclose(distances.data, 100)
    assert (connectivities != connectivities.T).nnz == 0


def test_gap_is_not_bridged():
    left = hex_grid(6, 6)
    coordinates = np.concatenate([left, left + [1000, 0]])
    connectivities, _ = spatial_graph(coordinates, None, 6)
    assert connectivities[:36, 36:].nnz == connectivities[36:, :36].nnz == 0


@pytest.mark.parametrize("pitch", [1e-3, 1.0])
def test_unit_of_the_positions_does_not_matter(pitch):
    expected = spatial_graph(hex_grid(), None, 6)[0]
    assert (spatial_graph(hex_grid(pitch=pitch), None, 6)[0] != expected).nnz == 0


def test_distances_up_to_one_and_a_half_times_the_typical_one_count():
    for last, linked in ((4.5, True), (4.5 + 1e-9, False)):
        coordinates = np.column_stack([[0, 1, 2, 3, last], np.zeros(5)])
        assert (spatial_graph(coordinates, None, 1)[0][4].nnz > 0) == linked


def test_no_distance_is_too_far_where_most_spots_share_a_position():
    coordinates = np.array([[0.0, 0], [0, 0], [0, 0], [0, 0], [3, 0]])
    assert spatial_graph(coordinates, None, 1)[0][4].nnz == 1


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
def test_numbers_of_any_kind_as_positions(dtype):
    coordinates = np.random.default_rng(5).uniform(0, 200, (40, 2)).astype(dtype)
    graph, expected = spatial_graph(coordinates, None, 6), spatial_graph(coordinates.astype(np.float64), None, 6)
    assert [matrix.dtype for matrix in graph] == [np.float32, np.float64]
    for matrix, other in zip(graph, expected, strict=True):
        np.testing.assert_array_equal(matrix.toarray(), other.toarray())


def test_spots_at_one_position_stay_neighbors():
    coordinates = hex_grid(6, 6)
    coordinates[[7, 8]] = coordinates[14]
    connectivities, distances = spatial_graph(coordinates, None, 6)
    assert (connectivities.data == 1).all()
    np.testing.assert_array_equal(connectivities.indices, distances.indices)
    assert (connectivities.diagonal() == 0).all()
    index, distance, mask = neighbor_index(connectivities, distances, 6)
    assert set(index[7][:2]) == {8, 14}
    assert mask[7, :2].all()
    assert (distance[7, :2] == 0).all()
    assert distance[7, 2] > 0
    # Sparse formats may drop the zero distances on the way; the edges remain.
    distances.eliminate_zeros()
    assert distances.nnz < connectivities.nnz
    for before, after in zip((index, distance, mask), neighbor_index(connectivities, distances, 6), strict=True):
        np.testing.assert_array_equal(before, after)


def test_all_spots_at_one_position():
    connectivities, _ = spatial_graph(np.ones((9, 2)), None, 3)
    np.testing.assert_array_equal(np.diff(connectivities.indptr), 3)


def test_libraries_smaller_than_the_neighborhood():
    coordinates = np.array([[0, 0], [1, 0], [0, 1], [0, 0]], dtype=float)
    connectivities, distances = spatial_graph(coordinates, ["a", "a", "a", "b"], 6)
    index, _, mask = neighbor_index(connectivities, distances, 6)
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 2, 2, 0])
    assert (index[3] == 3).all()
    empty, _ = spatial_graph(np.empty((0, 2)), None, 6)
    assert empty.shape == (0, 0)


def test_rows_with_more_neighbors_keep_the_nearest():
    rng = np.random.default_rng(1)
    coordinates = rng.uniform(0, 1, (80, 2))
    wide = neighbor_index(*spatial_graph(coordinates, None, 10), 10)
    narrow = neighbor_index(*spatial_graph(coordinates, None, 10), 4)
    for full, cut in zip(wide, narrow, strict=True):
        np.testing.assert_array_equal(full[:, :4], cut)


def test_without_distances_the_strongest_come_first():
    weights = sparse.csr_matrix(np.array([[5.0, 0.2, 0.9], [0.0, 0.0, 0.0], [0.1, 0.3, 0.0]]))
    index, distance, mask = neighbor_index(weights, None, 2)
    np.testing.assert_array_equal(index, [[2, 1], [1, 1], [1, 0]])
    np.testing.assert_array_equal(mask, [[True, True], [False, False], [True, True]])
    assert (distance == 0).all()


@pytest.mark.parametrize("with_distances", [True, False])
def test_ties_do_not_depend_on_the_order_of_the_spots(with_distances):
    """On a grid with eight neighbours, of which six are kept."""
    x, y = (part.ravel() for part in np.mgrid[:9, :9])
    apart = np.maximum(abs(x[:, None] - x), abs(y[:, None] - y))
    graph = sparse.csr_matrix((apart == 1).astype(float))
    names, order = np.random.default_rng(0).permutation(81).astype(np.uint64), np.random.default_rng(1).permutation(81)
    index, _, mask = neighbor_index(graph, graph if with_distances else None, 6, names)
    moved = graph[order][:, order]
    other, _, _ = neighbor_index(moved, moved if with_distances else None, 6, names[order])
    np.testing.assert_array_equal(names[order][other], names[index][order])
    assert mask.sum(axis=1).max() == 6


def test_one_sided_distances_of_a_symmetrised_graph():
    weights = sparse.csr_matrix(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=float))
    distances = sparse.csr_matrix(np.array([[0, 2, 0], [0, 0, 1], [3, 0, 0]], dtype=float))
    index, distance, _ = neighbor_index(weights, distances, 2)
    np.testing.assert_array_equal(index, [[1, 2], [2, 0], [1, 0]])
    np.testing.assert_array_equal(distance, [[2, 3], [1, 2], [1, 3]])


def test_a_single_distance_is_read():
    edge = sparse.csr_matrix(([7.0], ([0], [1])), shape=(3, 3))
    _, distance, mask = neighbor_index(edge, edge, 1)
    np.testing.assert_array_equal(distance.ravel(), [7, 0, 0])
    np.testing.assert_array_equal(mask.ravel(), [True, False, False])


def test_graph_formats_give_one_index():
    connectivities, distances = spatial_graph(np.random.default_rng(2).uniform(0, 1, (40, 2)), None, 5)
    expected = neighbor_index(connectivities, distances, 5)
    for variant in (
        connectivities.tocsc(),
        connectivities.tocoo(),
        sparse.csr_array(connectivities),
        connectivities.toarray(),
    ):
        for left, right in zip(expected, neighbor_index(variant, distances, 5), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.fixture
def sections():
    rng = np.random.default_rng(3)
    adata = ad.AnnData(
        np.ones((120, 3), dtype=np.float32),
        obs=pd.DataFrame(
            {"library_id": pd.Categorical(rng.choice(["x", "y"], 120))}, index=[f"s{i}" for i in range(120)]
        ),
        obsm={"spatial": rng.uniform(0, 50, (120, 2))},
    )
    add_spatial_graph(adata, spatial_key="spatial", library_key="library_id", n_neighbors=6)
    return adata


def read(adata, k=6, key=Keys.NEIGHBORS):
    return neighbor_index(adata.obsp[f"{key}_connectivities"], adata.obsp[f"{key}_distances"], k)


def test_subset_keeps_the_edges_among_its_spots(sections):
    chosen = np.random.default_rng(4).permutation(120)[:70]
    subset = sections[chosen].copy()
    full = all_pairs(sections.obsm["spatial"], sections.obs["library_id"].to_numpy(), 6)
    place = {old: new for new, old in enumerate(chosen)}
    surviving = [[(d, place[j]) for d, j in full[old] if j in place] for old in chosen]
    assert_is(*read(subset), surviving)


def test_concatenated_sections_keep_their_edges(sections):
    first, second = sections[:50].copy(), sections[50:].copy()
    joined = ad.concat([first, second], pairwise=True)
    index, distance, mask = read(joined)
    for part, offset in ((first, 0), (second, 50)):
        rows = slice(offset, offset + part.n_obs)
        expected = read(part)
        np.testing.assert_array_equal(index[rows], expected[0] + offset)
        np.testing.assert_array_equal(distance[rows], expected[1])
        np.testing.assert_array_equal(mask[rows], expected[2])


def test_h5ad_round_trip(sections, tmp_path):
    sections.obsm["spatial"][5] = sections.obsm["spatial"][9]
    sections.obs["library_id"] = "x"
    add_spatial_graph(sections, spatial_key="spatial", library_key=None, n_neighbors=4, key_added="mine")
    before = read(sections, 4, "mine")
    sections.write_h5ad(tmp_path / "sections.h5ad")
    loaded = ad.read_h5ad(tmp_path / "sections.h5ad")
    for left, right in zip(before, read(loaded, 4, "mine"), strict=True):
        np.testing.assert_array_equal(left, right)
    params = {"method": "knn", "metric": "euclidean", "max_distance_factor": 1.5, "spatial_key": "spatial"}
    for written in (sections, loaded):
        assert written.uns["mine_neighbors"] == {
            "connectivities_key": "mine_connectivities",
            "distances_key": "mine_distances",
            "params": params | {"n_neighbors": 4},
        }
        assert written.uns["lgdist_neighbors"]["params"] == params | {"n_neighbors": 6, "library_key": "library_id"}


def test_hops_match_breadth_first_search():
    rng = np.random.default_rng(5)
    connectivities, _ = spatial_graph(rng.uniform(0, 1, (60, 2)), rng.integers(0, 2, 60), 3)
    linked = connectivities.toarray() > 0
    linked |= linked.T
    steps = np.full((60, 60), np.inf)
    for start in range(60):
        steps[start, start], frontier, hop = 0, {start}, 0
        while frontier:
            hop += 1
            frontier = {j for i in frontier for j in np.flatnonzero(linked[i]) if np.isinf(steps[start, j])}
            steps[start, list(frontier)] = hop
    for hop, weights in zip((3, 1, 2), hop_weights(connectivities, (3, 1, 2)), strict=True):
        assert sparse.isspmatrix_csr(weights)
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(weights.toarray(), (steps <= hop) & (steps > 0))


def test_hops_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        hop_weights(sparse.identity(3, format="csr"), (0, 1))
    assert hop_weights(sparse.identity(3, format="csr"), ()) == []


def test_agrees_with_squidpy_where_nothing_is_dropped():
    sq = pytest.importorskip("squidpy")
    rng = np.random.default_rng(6)
    angle = np.linspace(0, 2 * np.pi, 50, endpoint=False) + rng.normal(0, 1e-3, 50)
    adata = ad.AnnData(np.ones((50, 1)), obsm={"spatial": np.column_stack([np.cos(angle), np.sin(angle)])})
    sq.gr.spatial_neighbors_knn(adata, n_neighs=4)
    connectivities, distances = spatial_graph(adata.obsm["spatial"], None, 4)
    np.testing.assert_allclose(connectivities.toarray(), adata.obsp["spatial_connectivities"].toarray())
    np.testing.assert_allclose(distances.toarray(), adata.obsp["spatial_distances"].toarray())


def test_order_of_the_spots_does_not_matter():
    """On a square grid six neighbours are four and two of four that are equally far."""
    positions = np.stack(np.divmod(np.arange(100), 10), axis=1).astype(float)
    libraries = np.arange(100) // 50
    order = np.random.default_rng(0).permutation(100)
    graph, _ = spatial_graph(positions, libraries, 6)
    shuffled, _ = spatial_graph(positions[order], libraries[order], 6)
    np.testing.assert_array_equal(shuffled.toarray(), graph.toarray()[np.ix_(order, order)])


def test_largest_distance():
    positions = np.array([[0.0, 0], [1, 0], [3, 0], [7, 0], [7, 0]])
    connectivities, distances = spatial_graph(positions, None, 2, 2.0)
    assert sorted(zip(*connectivities.nonzero(), strict=True)) == [(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)]
    assert distances.max() == 2
