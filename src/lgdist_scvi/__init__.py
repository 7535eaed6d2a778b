"""Completion of spatial transcriptomics by latent gene diffusion (LGDiST), as a scvi-tools model."""

from importlib.metadata import version

from . import datasets, metrics, pl, pp, tl
from .model import PUBLISHED, LGDiST
from .module import LGDiSTModule

__all__ = ["PUBLISHED", "LGDiST", "LGDiSTModule", "datasets", "metrics", "pl", "pp", "tl"]

__version__ = version("lgdist-scvi")
