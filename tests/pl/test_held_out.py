"""Drawings of held-out entries, of which the right answers are known."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from lgdist_scvi import pl
from lgdist_scvi.metrics import count_coverage


@pytest.fixture
def entries():
    """Counts of a hundred spots and three genes, predicted well, by the mean, and the wrong way round."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 5, size=(100, 3))
    counts = rng.poisson(rate)
    mean = np.broadcast_to(counts.mean(axis=0), rate.shape)
    expected = np.stack([rate[:, 0], mean[:, 1], 2 * mean[:, 2] - rate[:, 2].clip(max=1.5 * mean[0, 2])], axis=1)
    spot, gene = (index.ravel() for index in np.indices(rate.shape))
    return pd.DataFrame(
        {
            "spot": pd.Categorical.from_codes(spot, [f"s{i}" for i in range(100)]),
            "gene": pd.Categorical.from_codes(gene, ["good", "mean", "wrong"]),
            "count": counts.ravel().astype(np.float32),
            "depth": 1500.0,
            "expected": expected.ravel(),
            "std": np.full(300, 0.1),
            "detected": np.log1p(expected.ravel() / 1500 * 1e4),
        }
    )


def test_held_out(entries):
    left, right = pl.held_out(entries)
    found = entries[entries["count"] > 0]
    value = np.log1p(found["count"] / found["depth"] * 1e4)
    assert left.get_title() == f"detected entries, r = {np.corrcoef(value, found['detected'])[0, 1]:.2f}"
    assert left.collections[0].get_array().sum() == len(found)
    (points, *_) = right.lines
    mean = points.get_xydata()
    assert len(mean) == 12 and (np.diff(mean[:, 0]) >= 0).all()
    assert mean.mean(axis=0) == pytest.approx([entries["expected"].mean(), entries["count"].mean()], rel=1e-5)
    left.figure.canvas.draw()


def test_gene_accuracy(entries):
    explained, correlated = pl.gene_accuracy(entries, n_labels=1)
    names = {text.get_text(): text.xy for text in explained.texts}
    assert set(names) == {"good", "wrong"}
    assert names["good"][1] > 0.5 and names["wrong"][1] < -0.2
    assert names["good"][0] == pytest.approx(entries[entries["gene"] == "good"]["count"].mean())
    scores = explained.collections[0].get_offsets()[:, 1]
    assert np.sort(scores)[1] == pytest.approx(0, abs=1e-6)  # the mean explains nothing
    assert {text.get_text() for text in correlated.texts} >= {"good", "wrong"}


def test_names_of_genes_do_not_lie_on_each_other(entries):
    crowd = pd.concat([entries, entries[entries["gene"] == "good"].assign(gene="twin")])
    names = [text.get_text() for text in pl.gene_accuracy(crowd, n_labels=2)[0].texts]
    assert len({"good", "twin"} & set(names)) == 1 and "wrong" in names


def test_coverage(entries):
    ax = plt.figure().add_subplot()
    assert pl.coverage(entries, ax=ax) is ax
    curves = {line.get_label(): line.get_xydata() for line in ax.lines}
    columns = entries["count"], entries["expected"], entries["std"]
    expected = [count_coverage(*(column.to_numpy() for column in columns), level) for level in (0.1, 0.95)]
    found = curves["rate and counting"]
    assert found[[0, -1], 0].tolist() == [0.1, 0.95] and found[[0, -1], 1] == pytest.approx(expected)
    assert (found[:, 1] >= curves["counting alone"][:, 1]).all()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("draw", [pl.held_out, pl.gene_accuracy, pl.coverage])
def test_nothing_to_draw(entries, draw):
    with pytest.raises(ValueError, match=r"lacks \['std'\]; pass what model.get_held_out_entries"):
        draw(entries.drop(columns="std"))
    with pytest.raises(ValueError, match="no entry to draw"):
        draw(entries.iloc[:0])


def test_nothing_detected(entries):
    with pytest.raises(ValueError, match="None of the entries was detected"):
        pl.held_out(entries.assign(count=0.0))
    pl.gene_accuracy(entries.assign(count=0.0))
    with pytest.raises(ValueError, match="2 panels"):
        pl.held_out(entries, axes=plt.figure().add_subplot())


@pytest.mark.parametrize("draw", [pl.held_out, pl.gene_accuracy, pl.coverage])
def test_the_figure_is_saved(entries, draw, saves):
    saves(draw, entries)
