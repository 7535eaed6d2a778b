"""Sums over similar spots: of the right ones, of others than the spot itself, and shrunk as they should be."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi.data import _similar
from lgdist_scvi.data._similar import CodeSpace, Comparison, SimilarSpots

N, G = 40, 6


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(_similar, "N_SIMILAR", (2, 5))
    return np.random.default_rng(0)


def space_of(random, section, reference, n_parts=1):
    """Codes, a graph in which some spots have no neighbour, and the space that they make."""
    codes = random.normal(size=(N, n_parts, 3)).astype(np.float32)
    wide = sparse.random(N, N, 0.1, format="csr", random_state=0)
    wide.data[:] = 1
    scale = random.normal(size=(3, 3))
    return codes, wide, scale, CodeSpace(codes, wide.tocsr(), section, reference, scale)


def by_hand(codes, wide, scale, section, reference, spot, number):
    """The nearest reference spots of the section, one by one."""
    around = wide.toarray() @ codes / np.maximum(wide.toarray().sum(1), 1)[:, None]

    def length(other):
        own, beside = ((values[other] - values[spot]) @ scale for values in (codes, around))
        return (own**2).sum() + 0.7**2 * (beside**2).sum()

    others = [i for i in reference if i != spot and section[i] == section[spot]]
    return sorted(others, key=length)[:number]


@pytest.mark.parametrize("cache", [1 << 20, 0])
def test_the_most_similar_spots_by_brute_force(few, monkeypatch, cache):
    monkeypatch.setattr(_similar, "CACHE_BYTES", cache)
    section = few.integers(0, 2, N)
    section[7:10] = 2  # a section of three spots
    reference = np.arange(0, N, 2)
    codes, wide, scale, space = space_of(few, section, reference, n_parts=2)
    for part in (0, 1):
        nearest = space.nearest(np.arange(N), part)
        for spot in range(N):
            expected = by_hand(codes[:, part], wide, scale, section, reference, spot, 5)
            assert [reference[place] for place in nearest[spot] if place < len(reference)] == expected
        assert (nearest[8] == len(reference)).all()  # the only reference spot of its section
        assert torch.equal(space.nearest(np.array([9, 3]), part), nearest[[9, 3]])


def test_a_tissue_with_fewer_reference_spots_than_are_looked_at(few):
    *_, space = space_of(few, np.zeros(N, dtype=int), np.array([0, 2]))
    nearest = space.nearest(np.arange(3), 0).tolist()
    assert nearest[0] == [1, 2, 2, 2, 2] and nearest[2] == [0, 2, 2, 2, 2] and sorted(nearest[1]) == [0, 1, 2, 2, 2]


def similar_spots(random, pseudo_counts):
    """Two kinds: all genes by the same codes, and the even and the odd genes by others."""
    tables = [random.poisson(2.0, (N + 1, G)).astype(np.float32), random.uniform(1, 3, (N + 1, G)).astype(np.float32)]
    for table in tables:
        table[N] = 0
    counted, expected = map(torch.from_numpy, tables)
    *_, space = space_of(random, np.zeros(N, dtype=int), np.arange(N), n_parts=3)
    genes = [torch.arange(G), torch.arange(0, G, 2), torch.arange(1, G, 2)]
    comparisons = [Comparison(part, g, counted[:, g], expected[:, g]) for part, g in enumerate(genes)]
    return SimilarSpots([(space, comparisons[:1]), (space, comparisons[1:])], pseudo_counts), tables, space


def test_ratios_by_hand(few):
    pseudo_counts = np.stack([np.full(G, 4.0), np.linspace(1, 6, G)])
    similar, (counted, expected), space = similar_spots(few, torch.from_numpy(pseudo_counts).float())
    rows = np.array([3, 31, 3])
    found = similar.of(rows, folds=True)
    np.testing.assert_array_equal(similar.of(rows, folds=False), found[:, :1])
    assert found.shape == (3, 2, G) and found.dtype == np.float32
    for i in range(len(rows)):
        for gene in range(G):
            for kind, part in enumerate((0, 1 + gene % 2)):
                ratio, near = 1.0, space.nearest(rows, part)[i]
                for number, pseudo in ((5, pseudo_counts[1, gene]), (2, pseudo_counts[0, gene])):
                    some = near[:number].numpy()
                    ratio *= (counted[some, gene].sum() + pseudo) / (ratio * expected[some, gene].sum() + pseudo)
                assert np.exp(found[i, kind, gene]) == pytest.approx(ratio, rel=1e-5)


def test_many_pseudo_counts_leave_nothing(few):
    similar, *_ = similar_spots(few, torch.full((2, G), 1e9))
    assert np.abs(similar.of(np.arange(N), folds=True)).max() < 1e-6
