"""Training that is short unless the caller says how long, of a small field: of many only the steps around them matter."""

import functools

import pytest

from lgdist_scvi import LGDiST


def train_briefly(patch: pytest.MonkeyPatch, n_epochs: int = 1) -> None:
    """Let both phases take `n_epochs` by default, and no progress bar, and let the field have few factors."""
    patch.setattr("lgdist_scvi.model._lgdist.MOST_FACTORS", 4)
    for name in ("train_autoencoder", "train_diffusion"):
        patch.setattr(LGDiST, name, _brief(getattr(LGDiST, name), n_epochs))


def _brief(phase, n_epochs):
    @functools.wraps(phase)
    def train(self, max_epochs=None, **options):
        phase(self, max_epochs or n_epochs, **({"enable_progress_bar": False} | options))

    return train
