"""Joint samples of expression: draws of the field, and the overdispersion of every entry around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ._posterior import posterior

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._batch import Batch

    from ._lgdist import LGDiSTModule
    from ._posterior import Posterior, Prediction

LARGEST_DEVIATION = 3.0
"""Bound of the log ratio of a draw to what is expected, 20-fold. Of a gene that is rare here and a thousand times as high elsewhere, such as
immunoglobulins, draws in a spot without counts would go astray without it: log rates are linear in codes that are hardly known there."""
# Keeps roots of covariances real that are zero but for rounding.
_JITTER = 1e-6


class ExpressionSamples:
    """Draws from the posterior of the expression, jointly over spots and genes, around the completed expression.

    A draw of the codes is joint over the tissue; loadings and levels, which are uncertain as well, are drawn once for all
    spots. Given these, the rate of an entry is gamma distributed, with its own count if that is visible.

    Parameters
    ----------
    module
        Trained module with a latent field.
    n_samples, seed
        Number of draws, and their seed.

    References
    ----------
    "Joint samples" of :doc:`/method`.
    """

    def __init__(self, module: LGDiSTModule, n_samples: int, seed: int) -> None:
        assert module.field is not None
        self._module, self._field, self._seed = module, module.field, seed
        field = self._field
        covariance = field.full(field.products - field.second(field.loadings))
        root = torch.linalg.cholesky_ex(covariance + _JITTER * torch.eye(field.n_factors).to(covariance)).L
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n_samples, *field.loadings.shape, generator=generator)
        self._loadings = [field.loadings + torch.bmm(root, one.to(root)[..., None])[..., 0] for one in noise]
        levels = torch.randn(n_samples, len(field.level), generator=generator).to(root)
        self._levels = levels * field.level_variance.sqrt()

    @torch.no_grad()
    def draw(self, prediction: Prediction, batch: Batch, rows: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """Samples of the share of the depth, each ``(n_spots, n_genes)``.

        Parameters
        ----------
        prediction
            Prediction for the minibatch.
        batch
            The minibatch with all genes, with codes and draws of them, on the device of the module.
        rows
            Numbers of the spots, ``(n_spots,)``, to which the random numbers of their entries belong.
        """
        given = posterior(prediction, self._module)
        around = [
            _gammas(self._seed, row, one, len(self._loadings)) for row, one in zip(rows, given.shape.cpu(), strict=True)
        ]
        gammas = torch.from_numpy(np.stack(around, axis=1)).to(given.mean)
        for expected, gamma in zip(self.expectations(given, prediction, batch), gammas, strict=True):
            yield expected * gamma / given.shape

    @torch.no_grad()
    def expectations(self, given: Posterior, prediction: Prediction, batch: Batch) -> Iterator[torch.Tensor]:
        """Samples of the expectations around which the rates of single entries are gamma distributed.

        Parameters
        ----------
        given
            Posterior of the prediction.
        prediction, batch
            As in :meth:`draw`.
        """
        for deviation in self._deviations(batch, prediction):
            # What the deviation leaves of itself where the own count is known.
            ratio = deviation.exp()
            yield given.mean * ratio / (1 + given.own * (ratio - 1))

    def _deviations(self, batch: Batch, prediction: Prediction) -> Iterator[torch.Tensor]:
        """Draws of the log rates around those expected, each ``(n_spots, n_genes)``; the expectation of a rate is kept, as far as none is bounded."""
        codes, genes = batch.field[:, 0], prediction.genes
        expected = codes @ self._field.loadings[genes].T + prediction.log_variance / 2
        for draw, loadings, level in zip(batch.draws.unbind(dim=1), self._loadings, self._levels, strict=True):
            deviation = (codes + draw) @ loadings[genes].T + level[genes] - expected
            yield deviation.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)


def _gammas(seed: int, row: int, shape: torch.Tensor, n_samples: int) -> NDArray[np.float32]:
    """Gamma variables of one spot, ``(n_samples, n_genes)``."""
    generator = np.random.Generator(np.random.Philox(key=[seed, int(row)]))
    return generator.standard_gamma(shape.numpy(), (n_samples, len(shape)), dtype=np.float32)
