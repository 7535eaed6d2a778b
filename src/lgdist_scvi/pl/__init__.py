"""Plots of the training and of completed expression."""

from ._history import history
from ._maps import completion, uncertainty

__all__ = ["completion", "history", "uncertainty"]
