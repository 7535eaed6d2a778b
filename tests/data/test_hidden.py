"""Hidden entries: none, all or some, and the same answers as from a dense mask."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi.data import _hidden
from lgdist_scvi.data._hidden import Hidden, dense
from lgdist_scvi.data._view import SpotView

SHAPE = (30, 7)
EVERYTHING = np.arange(SHAPE[0])


def mask_of(share):
    return np.random.default_rng(0).random(SHAPE) < share


@pytest.fixture(params=[0.0, 0.3, 1.1], ids=["none", "some", "all"])
def mask(request):
    return mask_of(request.param)


@pytest.fixture
def hidden(mask):
    return Hidden(SHAPE, sparse.csr_matrix(mask))


def test_rows(hidden, mask):
    rows = np.array([3, 0, 3, 29])
    np.testing.assert_array_equal(hidden[rows], mask[rows])
    assert (hidden.any, hidden.everything) == (mask.any(), mask.all())
    assert hidden.some == (mask.any() and not mask.all())


def test_further_entries(hidden, mask):
    more = mask_of(0.5)[::-1]
    entries = sparse.csr_matrix(more)
    np.testing.assert_array_equal((hidden | entries)[EVERYTHING], mask | more)
    np.testing.assert_array_equal(hidden.new(entries).toarray(), more & ~mask)


def test_whole_spots(hidden, mask):
    spots = np.arange(SHAPE[0]) % 7 == 3
    found = hidden.with_spots(spots)
    np.testing.assert_array_equal(found[EVERYTHING], mask | spots[:, None])
    # With nothing new it stays as it was, byte by byte.
    assert found.with_spots(spots) is found
    assert hidden.with_spots(np.zeros_like(spots)) is hidden


def test_values_at_hidden_entries(hidden, mask):
    values = np.random.default_rng(1).random(SHAPE[0]).astype(np.float32)
    expected = mask * values[:, None]
    np.testing.assert_array_equal(np.broadcast_to(dense(hidden.times(values)), SHAPE), expected)
    weights = sparse.random(4, SHAPE[0], 0.5, format="csr", random_state=0)
    np.testing.assert_allclose(
        np.broadcast_to(dense(weights @ hidden.times(values)), (4, SHAPE[1])), weights @ expected, rtol=1e-6
    )


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_of_a_mask_of_observed_entries(hidden, mask, form):
    found = Hidden.unobserved(form(~mask))
    np.testing.assert_array_equal(found[EVERYTHING], mask)
    assert [part.tobytes() for part in found.parts()] == [part.tobytes() for part in hidden.parts()]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_mask_of_observed_entries_is_read_in_blocks(monkeypatch, form):
    monkeypatch.setattr(_hidden, "_BLOCK_BYTES", 4 * SHAPE[1])
    mask = mask_of(0.3)
    np.testing.assert_array_equal(Hidden.unobserved(form(~mask))[EVERYTHING], mask)


def test_parts_tell_masks_apart():
    masks = [Hidden(SHAPE), Hidden.all(SHAPE), *(Hidden(SHAPE, sparse.csr_matrix(mask_of(s))) for s in (0.2, 0.3))]
    assert len({b"".join(part.tobytes() for part in hidden.parts()) for hidden in masks}) == 4
    assert Hidden.all(SHAPE).parts()[0] == Hidden(SHAPE, sparse.csr_matrix(mask_of(1.1))).parts()[0]


@pytest.mark.parametrize("shape", [(1, 1), (0, 7)])
def test_by_default_nothing_is_hidden(shape):
    hidden = Hidden(shape)
    assert not hidden.any and not hidden[np.arange(shape[0])].any()
    assert not Hidden(shape, sparse.csr_matrix(shape, dtype=bool)).any


def test_places_without_counts_take_no_memory_per_entry():
    """As for predictions from images alone: a mask entry by entry would take 5 bytes for each, here 200 MB."""
    n, g = 4_000, 10_000
    graph = sparse.diags([np.ones(n - 1)] * 2, [1, -1], format="csr", dtype=np.float32)
    tracemalloc.start()
    view = SpotView(
        sparse.csr_matrix((n, g), dtype=np.float32),
        Hidden.all((n, g)),
        np.ones(n, dtype=np.float32),
        np.zeros(n, dtype=np.intp),
        np.zeros(n, dtype=np.intp),
        graph,
        graph,
        2,
        np.zeros((n, 3), dtype=np.float32),
        np.full(g, 1 / g),
    )
    batch = view.gather(np.arange(5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert not batch.observed.any() and batch.neighbor_observed.shape == (5, 2, 1) and not batch.neighbor_observed.any()
    assert (batch.pooled == 0).all()


def test_some_rows(hidden, mask):
    rows = np.array([5, 2, 29])
    part = hidden.of(rows)
    assert part.shape == (3, SHAPE[1]) and (part.any, part.everything) == (mask[rows].any(), mask[rows].all())
    np.testing.assert_array_equal(part[np.arange(3)], mask[rows])
