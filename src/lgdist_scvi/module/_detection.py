"""Log values of detected entries, regressed on log rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from ._normalisation import log_normalise, log_value_of_one

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lgdist_scvi.data._batch import Batch

# Ridge penalty, in units of entries.
_RIDGE = 1.0


def detection_features(log_rate: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Regressors of the log value of a detected entry minus that of one count, ``(n_spots, n_genes, 3)``."""
    log_expected = log_rate + batch.depth.log()[:, None]
    return torch.stack([torch.ones_like(log_expected), F.softplus(log_expected), log_expected], dim=-1)


def fit_detection(blocks: Iterable[tuple[torch.Tensor, Batch]], like: torch.Tensor) -> torch.Tensor:
    """Coefficients of every gene, ``(n_genes, 3)``.

    Parameters
    ----------
    blocks
        Log rates ``(n_spots, n_genes)``, each predicted from other entries, with their minibatches.
    like
        A tensor ``(n_genes, 3)`` on the device of the blocks.
    """
    products = (_RIDGE * torch.eye(like.shape[1], device=like.device)).repeat(len(like), 1, 1)
    targets = torch.zeros_like(like)
    for log_rate, batch in blocks:
        features = detection_features(log_rate, batch)
        detected = (batch.observed & (batch.counts > 0)).float()
        above = log_normalise(batch.counts, batch.depth) - log_value_of_one(batch.depth)
        products += torch.einsum("bg,bgi,bgj->gij", detected, features, features)
        targets += torch.einsum("bg,bgi,bg->gi", detected, features, above)
    return torch.linalg.solve(products, targets[..., None])[..., 0]
