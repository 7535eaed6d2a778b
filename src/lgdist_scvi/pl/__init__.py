"""Plots of training, completed expression, held-out entries and image patches."""

from ._held_out import coverage, gene_accuracy, held_out
from ._history import history
from ._maps import completion, uncertainty
from ._patches import image_patches

__all__ = ["completion", "coverage", "gene_accuracy", "held_out", "history", "image_patches", "uncertainty"]
