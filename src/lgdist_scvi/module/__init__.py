"""The networks, the diffusion and their losses."""

from ._lgdist import LGDiSTModule

__all__ = ["LGDiSTModule"]
