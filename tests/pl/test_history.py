"""Curves of a made-up training."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from lgdist_scvi import pl


def curve(name, values, start=0):
    epochs = pd.RangeIndex(start, start + len(values), name="epoch")
    return pd.DataFrame({name: values}, index=epochs, dtype=object)  # scvi-tools logs objects


@pytest.fixture
def logged():
    return {
        "autoencoder": {
            "train_loss_step": curve("train_loss_step", [9.0, 8.0]),
            "train_loss": curve("train_loss", [3.0, 2.0, 1.5]),
            "validation_loss": curve("validation_loss", [3.5, np.nan, 2.0]),
        },
        "diffusion": {"train_loss": curve("train_loss", [1.0])},
    }


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_panel_per_phase(logged, wrapped):
    axes = pl.history(SimpleNamespace(history=logged) if wrapped else logged)
    assert axes.shape == (2,)
    assert [ax.get_title() for ax in axes] == ["autoencoder", "diffusion"]
    train, validation = axes[0].lines
    assert train.get_label() == "training"
    np.testing.assert_array_equal(train.get_xydata(), [[0, 3], [1, 2], [2, 1.5]])
    assert validation.get_label() == "validation"
    np.testing.assert_array_equal(validation.get_xydata(), [[0, 3.5], [2, 2]])  # not computed at epoch 1
    assert train.get_color() != validation.get_color()
    (alone,) = axes[1].lines
    assert alone.get_marker() == "o"  # one epoch is a point
    axes[0].figure.canvas.draw()


def test_phase_that_was_not_trained_has_no_panel(logged):
    assert len(pl.history(logged | {"diffusion": None})) == 1
    assert len(pl.history(logged | {"diffusion": {}})) == 1
    for nothing in (None, {}, {"autoencoder": {}}, SimpleNamespace(history=None)):
        with pytest.raises(ValueError, match="train"):
            pl.history(nothing)


def test_given_axes_are_used(logged, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    given = plt.subplots(2, 1)[1]
    assert (pl.history(logged, axes=given) == given).all()
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match="axes holds 1 axes, but 2 panels"):
        pl.history(logged, axes=given[0])


def test_the_figure_is_saved(logged, saves):
    saves(pl.history, logged)
