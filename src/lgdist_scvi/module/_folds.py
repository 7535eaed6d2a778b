"""Parts of the genes that are left out in turn, to predict observed entries without their own counts."""

from __future__ import annotations

import torch

N_FOLDS = 5


def gene_folds(n_genes: int) -> torch.Tensor:
    """Fold of every gene, ``(n_genes,)``; fixed, so that results do not depend on the minibatch."""
    order = torch.randperm(n_genes, generator=torch.Generator().manual_seed(0))
    return order % N_FOLDS
