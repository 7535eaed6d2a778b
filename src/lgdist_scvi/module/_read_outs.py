"""Read-outs by name: what is returned of a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from lgdist_scvi._constants import TARGET_SUM

from ._posterior import Prediction, posterior

if TYPE_CHECKING:
    from ._lgdist import LGDiSTModule


def expected(prediction: Prediction, module: LGDiSTModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean of the expression and its variance, the own count included where the entry was observed."""
    given = posterior(prediction, module)
    return given.mean, given.variance(prediction.log_variance)


def detected(prediction: Prediction, module: LGDiSTModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Expectation of the log value given that the entry is detected, as a share of the depth; no variance is known."""
    rate = prediction.detected.expm1() / TARGET_SUM
    return rate, torch.zeros_like(rate)


class ReadOut(NamedTuple):
    """How a prediction becomes what is returned."""

    read: Callable[[Prediction, LGDiSTModule], tuple[torch.Tensor, torch.Tensor]]
    """Makes of a prediction the share of the depth and its variance, each ``(n_spots, n_genes)``."""
    given_detection: bool = False
    """Whether it needs `detected` of the prediction."""
    has_std: bool = True
    """Whether the variance means something."""


READ_OUTS: dict[str, ReadOut] = {
    "expected": ReadOut(expected),
    "detected": ReadOut(detected, given_detection=True, has_std=False),
}
"""Read-outs that :meth:`~lgdist_scvi.LGDiST.get_completed_expression` knows."""
