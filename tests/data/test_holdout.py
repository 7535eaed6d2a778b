"""Held-out entries: drawn among the observed, by seed alone."""

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi.data import _holdout
from lgdist_scvi.data._hidden import Hidden
from lgdist_scvi.data._holdout import holdout_entries


def hidden(shape=(200, 30), share=0.3, seed=0):
    return Hidden(shape, sparse.csr_matrix(np.random.default_rng(seed).random(shape) < share))


def marked(unobserved):
    """True where an entry is unobserved."""
    return unobserved[np.arange(unobserved.shape[0])]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_share_of_the_observed_entries(fraction):
    unobserved = hidden()
    held_out = holdout_entries(unobserved, fraction, seed=1)
    assert held_out.shape == unobserved.shape and held_out.dtype == bool
    assert not held_out[marked(unobserved)].any()
    assert held_out.nnz == pytest.approx(fraction * (~marked(unobserved)).sum(), rel=0.15)


def test_depends_on_seed_and_shape_alone():
    unobserved = hidden()
    first = holdout_entries(unobserved, 0.2, seed=1)
    assert (first != holdout_entries(unobserved, 0.2, seed=1)).nnz == 0
    assert (first != holdout_entries(unobserved, 0.2, seed=2)).nnz > 0
    # What is unobserved is left out of the draw and changes nothing else.
    everything = holdout_entries(Hidden(unobserved.shape), 0.2, seed=1)
    np.testing.assert_array_equal(first.toarray(), everything.toarray() & ~marked(unobserved))


def test_limited_number_of_spots(monkeypatch):
    monkeypatch.setattr(_holdout, "MAX_HOLDOUT_SPOTS", 25)
    held_out = holdout_entries(hidden(share=0.0), 0.5, seed=1)
    rows = np.flatnonzero(np.diff(held_out.indptr))
    assert len(rows) == 25
    assert rows.max() > 100


def test_nothing():
    assert holdout_entries(hidden(), 0.0, seed=0).nnz == 0
    assert holdout_entries(hidden(share=1.1), 0.5, seed=0).nnz == 0


def test_no_share_is_no_entry_whatever_is_drawn(monkeypatch):
    class Generator(np.random.Generator):
        def random(self, shape, dtype):
            return np.zeros(shape, dtype)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Generator(np.random.PCG64(seed)))
    assert holdout_entries(Hidden((200, 30)), 0.0, seed=0).nnz == 0
    assert holdout_entries(Hidden((200, 30)), 1e-9, seed=0).nnz == 6000


@pytest.mark.parametrize("fraction", [-0.01, 1.0, 1.5, np.nan])
def test_range(fraction):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        holdout_entries(hidden(), fraction, seed=0)
