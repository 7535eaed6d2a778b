"""Preprocessing: reading, gene selection, image embeddings."""

from ._descriptor import StainDescriptor
from ._genes import select_genes
from ._images import image_embeddings
from ._visium import from_visium, from_visium_hd

__all__ = ["StainDescriptor", "from_visium", "from_visium_hd", "image_embeddings", "select_genes"]
