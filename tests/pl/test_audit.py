"""The figure of an audit shows what its tables hold."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from lgdist_scvi import pl
from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.tl import audit, prepare_audit

QUESTIONS = ["totals", "deviance explained", "coverage", "contrast", "null tests", "correlations"]


@pytest.fixture(scope="module")
def tissue():
    return simulated_tissue(300, 100)


@pytest.fixture(scope="module")
def result(tissue):
    prepared = prepare_audit(tissue, n_decoys=30)
    prepared.layers["raw"] = prepared.X.copy()
    prepared.layers["std"] = np.sqrt(prepared.X.toarray())
    return audit(prepared, "raw", scale="counts", std_layer="std")


def test_panels_hold_the_tables(result):
    axes = pl.audit(result)
    assert axes.shape == (2, 3)
    titles = [ax.get_title() for ax in axes.ravel()]
    assert [title.partition(":")[0] for title in titles] == QUESTIONS
    wrong = [title.partition(":")[0] for title in titles if title.endswith("not as it should be")]
    assert set(wrong) == set(result.failed) - {"over-imputation"} != set()
    totals, explained, covered, contrast, null, correlation = axes.ravel()
    genes = result.genes[~result.genes["decoy"] & (result.genes["measured"] >= 100)]
    np.testing.assert_allclose(totals.collections[0].get_offsets(), genes[["mean", "total_ratio"]])
    np.testing.assert_allclose(explained.collections[0].get_offsets()[:, 1], genes["deviance_explained"])
    real = result.genes[~result.genes["decoy"]]
    expected = [real[f"coverage_{level}"].mean() for level in ("0.5", "0.8", "0.95")]
    np.testing.assert_allclose(covered.lines[1].get_ydata(), expected)
    regions = result.regions.dropna()
    regions = regions[regions["gene"].isin(real.index)]
    np.testing.assert_allclose(
        contrast.collections[0].get_offsets(), regions[["measured_contrast", "completed_contrast"]]
    )
    heights = null.patches[-1].get_xy()
    assert (result.null_tests["p_completed"] < 0.05).mean() == pytest.approx(heights[1, 1] / 20)
    assert len(correlation.collections[0].get_offsets()) == len(result.correlations)
    axes[0, 0].figure.canvas.draw()


def test_what_was_not_asked_is_said(tissue):
    axes = pl.audit(audit(tissue, "rate", scale="rate"))
    told = [ax.get_title().partition(": ")[2] for ax in axes.ravel()]
    assert told == ["fine", *["not asked"] * 5]
    assert [text.get_text() for text in axes[1, 0].texts] == ["not asked"]
    axes[0, 0].figure.canvas.draw()


def test_axes_of_the_user(result):
    given = plt.figure().subplots(3, 2)
    assert list(pl.audit(result, axes=given).ravel()) == list(given.ravel())
    with pytest.raises(ValueError, match="6 panels are needed"):
        pl.audit(result, axes=plt.figure().add_subplot())


def test_the_figure_is_saved(result, saves):
    saves(pl.audit, result)
