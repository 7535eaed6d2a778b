"""Plots of the training, of completed expression and of image patches."""

from ._history import history
from ._maps import completion, uncertainty
from ._patches import image_patches

__all__ = ["completion", "history", "image_patches", "uncertainty"]
