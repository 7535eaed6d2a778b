"""Preprocessing: choice of genes, image embeddings."""

from ._descriptor import StainDescriptor
from ._genes import select_genes
from ._images import image_embeddings

__all__ = ["StainDescriptor", "image_embeddings", "select_genes"]
