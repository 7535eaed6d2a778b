"""Scores of a completion against held-out truth, as functions of NumPy arrays."""

from ._intervals import count_coverage, count_distribution, coverage
from ._metrics import (
    deviance_explained,
    gene_pearson,
    masked_mae,
    masked_mse,
    poisson_deviance,
)

__all__ = [
    "count_coverage",
    "count_distribution",
    "coverage",
    "deviance_explained",
    "gene_pearson",
    "masked_mae",
    "masked_mse",
    "poisson_deviance",
]
