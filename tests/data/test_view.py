"""A view holds what may be seen, and nothing of what is hidden."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi.data import _pooling
from lgdist_scvi.data._batch import Batch
from lgdist_scvi.data._hidden import Hidden
from lgdist_scvi.data._neighbors import spatial_graph
from lgdist_scvi.data._pooling import HOPS, RADIUS_PSEUDO_COUNTS, SECTION_PSEUDO_COUNTS
from lgdist_scvi.data._view import SpotView


def make_view(hidden_share=0.0, n_sections=2, *, known_depth=False, share=None, seed=0, k=6):
    rng = np.random.default_rng(seed)
    n, g = 80, 9
    counts = rng.negative_binomial(1, 0.3, (n, g)).astype(np.float32)
    hidden = rng.random((n, g)) < hidden_share
    if hidden_share:
        hidden[11], hidden[:, 4] = True, True
    counts[hidden] = 0
    section, half = np.arange(n) % n_sections, rng.integers(0, 2, n)
    positions = rng.uniform(0, 100, (n, 2))
    positions[79] += 1000  # has no neighbours
    connectivities, distances = spatial_graph(positions, section, k)
    depth = counts.sum(axis=1) + (rng.integers(100, 900, n) if known_depth else 0)
    image = rng.normal(size=(n, 3)).astype(np.float32)
    image[10:20] = np.nan
    return SpotView(
        sparse.csr_matrix(counts),
        Hidden(hidden.shape, sparse.csr_matrix(hidden)),
        depth,
        section,
        half,
        connectivities,
        distances,
        k,
        image,
        share,
    )


def all_of(view):
    """True where an entry is hidden, ``(n_spots, n_genes)``."""
    return view.hidden[np.arange(view.n_spots)]


def hops_away(graph, hops):
    """Spots reached in at most that many steps in either direction, without the spot itself."""
    near = (graph.toarray() != 0) | (graph.toarray() != 0).T | np.eye(graph.shape[0], dtype=bool)
    reached = np.linalg.matrix_power(near.astype(float), hops) > 0
    np.fill_diagonal(reached, False)
    return reached


def pooled_by_hand(view, spot):
    """Shares pooled entry by entry, over what is visible of other spots."""
    counts, seen = view.counts.toarray().astype(float), ~all_of(view)
    depth = view.depth.astype(float)
    others = (view.section == view.section[spot]) & (view.half != view.half[spot])
    ratios = []
    wider = view.share
    groups = [(others, SECTION_PSEUDO_COUNTS)]
    groups += [(hops_away(view.graph, hops)[spot], RADIUS_PSEUDO_COUNTS) for hops in reversed(HOPS)]
    for group, strength in groups:
        share = np.empty(view.n_genes)
        for gene in range(view.n_genes):
            visible = group & seen[:, gene]
            total, seen_depth = counts[visible, gene].sum(), depth[visible].sum()
            share[gene] = wider[gene] * (total + strength) / (wider[gene] * seen_depth + strength)
        ratios.append(np.log(share / wider))
        wider = share
    return np.stack(ratios)


@pytest.mark.parametrize("hidden_share", [0.0, 0.3])
@pytest.mark.parametrize("n_sections", [1, 2])
def test_pooled_ratios_by_brute_force(hidden_share, n_sections):
    view = make_view(hidden_share, n_sections, known_depth=True)
    pooled = view.gather(np.arange(view.n_spots)).pooled.numpy()
    assert pooled.shape == (view.n_spots, len(HOPS) + 1, view.n_genes)
    for spot in (0, 11, 30, 79):
        np.testing.assert_allclose(pooled[spot], pooled_by_hand(view, spot), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("hidden_share", [0.0, 0.3])
def test_share_of_each_gene(hidden_share):
    view = make_view(hidden_share)
    counts, seen = view.counts.toarray(), ~all_of(view)
    with np.errstate(invalid="ignore"):
        expected = counts.sum(axis=0) / (view.depth[:, None] * seen).sum(axis=0)
    visible = seen.any(axis=0)
    np.testing.assert_allclose(view.share[visible], expected[visible], rtol=1e-5)
    # A gene that is visible nowhere is taken for as rare as the rarest.
    np.testing.assert_allclose(view.share[~visible], expected[visible].min(), rtol=1e-5)
    assert hidden_share or visible.all()


def changed(view, counts, depth=None):
    """The same view with other counts, and the depths that they sum to unless others are given."""
    depth = counts.sum(axis=1) if depth is None else depth
    kept = sparse.csr_matrix(counts)
    return SpotView(kept, view.hidden, depth, view.section, view.half, *view._graph, view.image)


def test_share_of_a_gene_without_a_count():
    view = make_view(0.3)
    counts = view.counts.toarray()
    counts[:, 6] = 0
    depth = counts.sum(axis=1) + 100
    less = changed(view, counts, depth)
    seen = (depth[:, None] * ~all_of(less)).sum(axis=0)
    # Half a count in all that was seen: rarer than the rarest, and than a gene that was seen nowhere.
    assert less.share[6] == pytest.approx(0.5 / seen[6])
    others = np.delete(np.arange(view.n_genes), [4, 6])
    np.testing.assert_allclose(less.share[others], counts.sum(axis=0)[others] / seen[others], rtol=1e-5)
    assert less.share[6] < less.share[others].min() == less.share[4]
    pooled = less.gather(np.arange(view.n_spots)).pooled
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize("hidden_share", [0.0, 0.3])
def test_a_spot_without_a_count_is_one_without_an_observed_entry(hidden_share):
    view = make_view(hidden_share)
    counts = view.counts.toarray()
    counts[[5, 30]] = 0
    one = changed(view, counts)
    assert all_of(one)[[5, 30]].all() and (all_of(one) == all_of(view))[np.delete(np.arange(80), [5, 30])].all()
    known = counts.sum(axis=1) > 0
    for spot in (5, 30):
        assert one.depth[spot] == np.median(one.depth[known & (one.section == one.section[spot])])
    mask = all_of(view)
    mask[[5, 30]] = True
    hidden = Hidden(mask.shape, sparse.csr_matrix(mask))
    other = SpotView(one.counts, hidden, counts.sum(axis=1), one.section, one.half, *one._graph, one.image)
    assert other.digest() == one.digest()
    # A depth that is known gives the zeros a meaning.
    assert not all_of(changed(view, counts, counts.sum(axis=1) + 1))[30].all()


def test_a_spot_is_not_in_its_own_pools():
    view = make_view(0.3, known_depth=True)
    counts = view.counts.tolil()
    gene = int(np.flatnonzero(~view.hidden[[30]][0])[0])
    counts[30, gene] = counts[30, gene] + 500
    changed = SpotView(
        counts.tocsr(), view.hidden, view.depth, view.section, view.half, *view._graph, view.image, share=view.share
    )
    before, after = (v.gather([30]).pooled for v in (view, changed))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    near = view.neighbors[30][view.neighbor_mask[30]]
    assert (changed.gather(near).pooled - view.gather(near).pooled).abs().max() > 0.1


def test_minibatches():
    view = make_view(0.3)
    rows = np.array([11, 3, 79, 3])
    batch = view.gather(rows)
    b, k, g = len(rows), 6, view.n_genes
    shapes = {
        "counts": (b, g),
        "observed": (b, g),
        "depth": (b,),
        "neighbor_counts": (b, k, g),
        "neighbor_observed": (b, k, g),
        "neighbor_depth": (b, k),
        "neighbor_mask": (b, k),
        "neighbor_distance": (b, k),
        "pooled": (b, len(HOPS) + 1, g),
        "image": (b, 1 + k, 3),
        "image_mask": (b, 1 + k),
        "field": (b, 1, 0),
        "draws": (b, 0, 0),
        "spread": (b, 0),
        "similar": (b, 0, 0),
        "clean": (b, 0),
    }
    assert {name: tuple(getattr(batch, name).shape) for name in Batch._fields} == shapes
    counts, hidden = view.counts.toarray(), all_of(view)
    np.testing.assert_array_equal(batch.counts, counts[rows])
    np.testing.assert_array_equal(batch.observed, ~hidden[rows])
    for i, row in enumerate(rows):
        near = view.graph[row].indices
        exists = batch.neighbor_mask[i].numpy()
        listed = view.neighbors[row][exists]
        has_image = ~np.isin(np.append(row, listed), np.arange(10, 20))
        assert not batch.image_mask[i].numpy()[1:][~exists].any()
        np.testing.assert_array_equal(batch.image_mask[i].numpy()[np.append(True, exists)], has_image)
        assert sorted(listed) == sorted(near)
        np.testing.assert_array_equal(batch.neighbor_counts[i][exists], counts[listed])
        np.testing.assert_array_equal(batch.neighbor_observed[i][exists], ~hidden[listed])
        np.testing.assert_array_equal(batch.neighbor_depth[i][exists], view.depth[listed])
        assert (batch.neighbor_counts[i][~exists] == 0).all()
    assert not batch.neighbor_mask.all()
    np.testing.assert_array_equal(view.gather(rows[:1]).counts[0], batch.counts[0])


def test_with_and_without_a_cache(monkeypatch):
    rows = np.random.default_rng(0).permutation(80)[:20]
    cached = make_view(0.3)
    cached.gather(rows[5:10])
    monkeypatch.setattr(_pooling, "BLOCK_BYTES", 1000)
    in_blocks = make_view(0.3)
    once = in_blocks.gather(rows)
    monkeypatch.setattr(_pooling, "CACHE_BYTES", 0)
    direct = make_view(0.3)
    for other in (in_blocks, direct):
        for name, one, two, first in zip(Batch._fields, cached.gather(rows), other.gather(rows), once, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6, msg=name)
            torch.testing.assert_close(one, first, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("cached", [True, False])
def test_reading_one_spot_pools_no_other(monkeypatch, cached):
    if not cached:
        monkeypatch.setattr(_pooling, "CACHE_BYTES", 0)
    pooled, pool = [], _pooling.Pools._pool
    monkeypatch.setattr(_pooling.Pools, "_pool", lambda self, rows: pooled.extend(rows) or pool(self, rows))
    view = make_view(0.3)
    view.gather([7])
    assert pooled == [7]
    view.gather([3, 7])
    assert pooled == ([7, 3] if cached else [7, 3, 7])


@pytest.mark.parametrize("known_depth", [False, True])
def test_hiding_further_entries(known_depth):
    view = make_view(0.2, known_depth=known_depth)
    rng = np.random.default_rng(2)
    # Some of them are hidden already.
    entries = sparse.csr_matrix(rng.random(view.counts.shape) < 0.3)
    less = view.without(entries)
    mask, before = entries.toarray(), all_of(view)
    # Of a spot that keeps neither a count nor a depth, nothing is left to see.
    lost = (np.where(mask, 0, view.counts.toarray()).sum(axis=1) == 0) & (not known_depth)
    assert known_depth or (lost & ~before.all(axis=1)).any()
    np.testing.assert_array_equal(all_of(less), before | mask | lost[:, None])
    np.testing.assert_array_equal(less.counts.toarray(), np.where(mask, 0, view.counts.toarray()))
    assert less.counts.data.all()
    removed = (view.counts.toarray() * mask).sum(axis=1)
    counted = view._counted - removed
    # The share of what is left, over depths without the hidden counts.
    seen = ~(before | mask)
    share = less.counts.toarray().sum(axis=0) / np.maximum((counted[:, None] * seen).sum(axis=0), 1)
    share[share == 0] = share[share > 0].min()
    expected = counted / (1 - (mask & ~before) @ share)
    some = expected > 0
    np.testing.assert_allclose(less.depth[some], expected[some], rtol=1e-5)
    assert (less.depth > 0).all()
    # Everything else is that of the whole.
    np.testing.assert_array_equal(less.neighbors, view.neighbors)
    np.testing.assert_array_equal(less.image, view.image)


def test_depth_stays_an_estimate_of_the_same_quantity():
    view = make_view(0.0)
    entries = sparse.csr_matrix(np.random.default_rng(3).random(view.counts.shape) < 0.05)
    assert view.without(entries).depth.mean() == pytest.approx(view.depth.mean(), rel=0.03)


def test_hiding_with_a_given_share():
    view = make_view(0.0)
    share = np.full(view.n_genes, 0.02)
    entries = sparse.csr_matrix(np.random.default_rng(3).random(view.counts.shape) < 0.3)
    less = view.without(entries, share)
    np.testing.assert_array_equal(less.share, share)
    removed = (view.counts.toarray() * entries.toarray()).sum(axis=1)
    expected = (view.depth - removed) / (1 - 0.02 * entries.toarray().sum(axis=1))
    np.testing.assert_allclose(less.depth[expected > 0], expected[expected > 0], rtol=1e-5)


def test_hiding_nothing():
    view = make_view(0.3)
    same = view.without(sparse.csr_matrix(view.counts.shape, dtype=bool))
    everything = np.arange(view.n_spots)
    for name, one, two in zip(Batch._fields, view.gather(everything), same.gather(everything), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_depth_of_spots_without_an_observed_count():
    view = make_view(0.3)
    same_section = (view.section == view.section[11]) & (view._counted > 0)
    assert view._counted[11] == 0
    assert view.depth[11] == np.median(view.depth[same_section])


def test_sections_may_be_measured_in_different_units():
    one = make_view(n_sections=2)
    graph, distances, k = one._graph
    row = distances.tocoo()
    stretched = sparse.csr_matrix((row.data * np.where(row.row % 2, 1000, 1), (row.row, row.col)), shape=row.shape)
    parts = (one.counts, one.hidden, one.depth, one.section, one.half)
    other = SpotView(*parts, graph, stretched, k, one.image)
    np.testing.assert_allclose(other.neighbor_distance, one.neighbor_distance, rtol=1e-5)
    for section in range(2):
        of_section = one.neighbor_distance[one.section == section][one.neighbor_mask[one.section == section]]
        assert np.median(of_section) == pytest.approx(1, rel=1e-5)
    # Also where both belong to one batch.
    batched = SpotView(*parts[:3], np.zeros(80, int), *parts[4:], graph, stretched, k, one.image, library=one.section)
    np.testing.assert_allclose(batched.neighbor_distance, one.neighbor_distance, rtol=1e-5)
    for view in (batched.without(sparse.csr_matrix(one.counts.shape, dtype=bool)), batched.halved(np.arange(80), 0)[0]):
        np.testing.assert_array_equal(view.neighbor_distance, batched.neighbor_distance)
    # A spot without neighbours, and sections of nothing else, have no distance.
    assert (one.neighbor_distance[79] == 0).all()
    alone = sparse.csr_matrix(graph.shape, dtype=np.float32)
    assert (SpotView(*parts, alone, alone, k, one.image).neighbor_distance == 0).all()


@pytest.mark.parametrize("hidden_share", [0.0, 0.2])
def test_halves_of_the_molecules(hidden_share):
    view, rows = make_view(hidden_share, known_depth=True), np.arange(5, 75)
    half, other = view.halved(rows, seed=1)
    np.testing.assert_array_equal((half.counts + other).toarray(), view.counts[rows].toarray())
    assert 0.45 < half.counts.sum() / view.counts[rows].sum() < 0.55
    assert half.counts.data.all()
    np.testing.assert_allclose(half.depth, view.depth[rows] / 2, rtol=1e-6)
    np.testing.assert_array_equal(all_of(half), view.hidden[rows])
    np.testing.assert_array_equal(half.image_mask, view.image_mask[rows])
    np.testing.assert_array_equal(half.graph.toarray(), view.graph[rows][:, rows].toarray())
    # As often as a coin falls.
    first, second = half.counts.toarray(), other.toarray()
    assert np.square(first - second).sum() / (first + second).sum() == pytest.approx(1, abs=0.2)
    assert (view.halved(rows, seed=2)[0].counts != half.counts).nnz
    assert (view.halved(rows, seed=1)[0].counts != half.counts).nnz == 0
