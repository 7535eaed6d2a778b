"""Sums over similar spots: of the right ones, of others than the spot itself, and shrunk as they should be."""

import numpy as np
import pytest
import torch

from lgdist_scvi.data import _similar
from lgdist_scvi.data._similar import Comparison, SimilarSpots, most_similar

N, G = 40, 6


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(_similar, "N_SIMILAR", (2, 5))
    return np.random.default_rng(0)


def by_hand(codes, section, reference, spot, number):
    """The nearest reference spots of the section, one by one."""
    others = [i for i in reference if i != spot and section[i] == section[spot]]
    return sorted(others, key=lambda i: ((codes[i] - codes[spot]) ** 2).sum())[:number]


def nearest_of(codes, section, reference):
    return most_similar(*(torch.from_numpy(np.asarray(array)) for array in (codes, section, reference)))


@pytest.mark.parametrize("at_once", [1 << 20, 7])
def test_the_most_similar_spots_by_brute_force(few, monkeypatch, at_once):
    monkeypatch.setattr(_similar, "DISTANCES", at_once)
    codes, section = few.normal(size=(N, 3)).astype(np.float32), few.integers(0, 2, N)
    section[7:10] = 2  # a section of three spots
    reference = np.arange(0, N, 2)
    nearest = nearest_of(codes, section, reference)
    for spot in range(N):
        expected = by_hand(codes, section, reference, spot, 5)
        found = [reference[place] for place in nearest[spot] if place < len(reference)]
        assert found == expected
    assert (nearest[8] == len(reference)).all()  # the only reference spot of its section


def test_a_tissue_with_fewer_reference_spots_than_are_looked_at(few):
    nearest = nearest_of(few.normal(size=(3, 2)).astype(np.float32), np.zeros(3, dtype=int), np.array([0, 2]))
    assert nearest.tolist() == [[1, 2, 2, 2, 2], [*nearest[1, :2].tolist(), 2, 2, 2], [0, 2, 2, 2, 2]]


def similar_spots(random, pseudo_counts):
    """Two kinds: all genes by the same codes, and the even and the odd genes by others."""
    tables = [random.poisson(2.0, (N + 1, G)).astype(np.float32), random.uniform(1, 3, (N + 1, G)).astype(np.float32)]
    for table in tables:
        table[N] = 0
    counted, expected = map(torch.from_numpy, tables)
    section, reference = np.zeros(N, dtype=int), np.arange(N)
    nearest = [nearest_of(random.normal(size=(N, 3)).astype(np.float32), section, reference) for _ in range(3)]
    genes = [torch.arange(G), torch.arange(0, G, 2), torch.arange(1, G, 2)]
    comparisons = [Comparison(g, near, counted[:, g], expected[:, g]) for g, near in zip(genes, nearest, strict=True)]
    return SimilarSpots([comparisons[:1], comparisons[1:]], pseudo_counts), tables, nearest


def test_ratios_by_hand(few):
    pseudo_counts = np.stack([np.full(G, 4.0), np.linspace(1, 6, G)])
    similar, (counted, expected), nearest = similar_spots(few, torch.from_numpy(pseudo_counts).float())
    rows = np.array([3, 31, 3])
    found = similar.of(rows)
    assert found.shape == (3, 2, G) and found.dtype == np.float32
    for row, spot in zip(found, rows, strict=True):
        for gene in range(G):
            for kind, near in enumerate((nearest[0], nearest[1 + gene % 2])):
                ratio = 1.0
                for number, pseudo in ((5, pseudo_counts[1, gene]), (2, pseudo_counts[0, gene])):
                    some = near[spot, :number].numpy()
                    ratio *= (counted[some, gene].sum() + pseudo) / (ratio * expected[some, gene].sum() + pseudo)
                assert np.exp(row[kind, gene]) == pytest.approx(ratio, rel=1e-5)


def test_many_pseudo_counts_leave_nothing(few):
    similar, *_ = similar_spots(few, torch.full((2, G), 1e9))
    assert np.abs(similar.of(np.arange(N))).max() < 1e-6
