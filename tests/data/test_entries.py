"""Only observed entries are read, whatever the format of the matrices."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi.data import _entries
from lgdist_scvi.data._entries import count_observed, listing, observed_entries, observed_matrix

FORMATS = [np.asarray, sparse.csr_matrix, sparse.csc_matrix]


def gather(counts, observed):
    seen = np.zeros(counts.shape)
    for row, col, value in observed_entries(counts, observed):
        assert (seen[row, col] == 0).all()
        seen[row, col] = value
    return seen


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("observed_format", [None, *FORMATS])
@pytest.mark.parametrize("counts_format", FORMATS)
def test_every_observed_entry_once(counts_format, observed_format, block, monkeypatch):
    monkeypatch.setattr(_entries, "BLOCK_ENTRIES", block)
    rng = np.random.default_rng(block)
    counts = rng.poisson(0.5, (23, 11)).astype(np.float32)
    counts[4], counts[:, 3] = 0, 0
    observed = rng.random((23, 11)) < 0.6
    observed[5], observed[:, 2] = False, False
    expected = counts if observed_format is None else np.where(observed, counts, 0)
    if observed_format is not None:
        counts[~observed & (rng.random((23, 11)) < 0.5)] = np.nan
    mask = None if observed_format is None else observed_format(observed)
    np.testing.assert_array_equal(gather(counts_format(counts), mask), expected)


def test_unsorted_and_repeated_sparse_entries_are_summed():
    counts = sparse.csr_matrix((np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 3, 3])), shape=(2, 3))
    np.testing.assert_array_equal(gather(counts, None), [[2, 0, 4], [0, 0, 0]])
    assert counts.nnz == 3  # the user's matrix is not changed


@pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_matrix])
def test_stored_false_is_hidden(to_format):
    stored = to_format(np.ones((2, 3), dtype=np.int8))
    stored.data[4] = 0
    adata = ad.AnnData(np.full((2, 3), 7.0), layers={"observed": stored})
    observed = observed_matrix(adata, "observed")
    assert observed.nnz == 5
    np.testing.assert_array_equal(gather(adata.X, observed), 7 * stored.toarray())
    assert count_observed(observed, adata.shape)[0].sum() == 5
    assert adata.layers["observed"].nnz == 6  # the user's layer is not changed


@pytest.mark.parametrize("to_format", FORMATS)
def test_number_of_observed_entries(to_format):
    observed = np.random.default_rng(0).random((9, 5)) < 0.5
    spots, genes = count_observed(to_format(observed), observed.shape)
    np.testing.assert_array_equal(spots, observed.sum(axis=1))
    np.testing.assert_array_equal(genes, observed.sum(axis=0))
    spots, genes = count_observed(None, (9, 5))
    assert (spots == 5).all()
    assert (genes == 9).all()


def test_listing():
    assert listing(["a", "b"]) == "'a', 'b'"
    assert listing(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"
