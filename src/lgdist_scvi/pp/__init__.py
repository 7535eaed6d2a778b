"""Preprocessing: reading, gene selection, image embeddings."""

from ._controls import drop_controls
from ._descriptor import StainDescriptor
from ._genes import select_genes
from ._images import image_embeddings
from ._tiles import tile_embeddings
from ._visium import from_visium, from_visium_hd

__all__ = [
    "StainDescriptor",
    "drop_controls",
    "from_visium",
    "from_visium_hd",
    "image_embeddings",
    "select_genes",
    "tile_embeddings",
]
