"""The model."""

from ._lgdist import LGDiST
from ._options import PUBLISHED

__all__ = ["PUBLISHED", "LGDiST"]
