"""Preprocessing: choice of genes."""

from ._genes import select_genes

__all__ = ["select_genes"]
