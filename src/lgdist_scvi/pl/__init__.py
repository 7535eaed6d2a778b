"""Plots of training, completed expression, domains, audits, held-out entries and image patches."""

from ._audit import audit
from ._domains import domains
from ._held_out import coverage, gene_accuracy, held_out
from ._history import history
from ._maps import completion, uncertainty
from ._patches import image_patches

__all__ = [
    "audit",
    "completion",
    "coverage",
    "domains",
    "gene_accuracy",
    "held_out",
    "history",
    "image_patches",
    "uncertainty",
]
