"""A transformer in which all spots of a section attend to each other: the family of HisToGene.

M. Pang, K. Su and M. Li, "Leveraging information in spatial transcriptomics to predict super-resolution gene expression
from histology images in tumors", bioRxiv, 2021.

Simpler than the original: frozen statistics of the patches instead of their pixels, two layers, and sines of the
coordinates instead of a table learnt for every row and column. No prediction between the spots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .sections import Section, sizes

N_HIDDEN, N_LAYERS, N_HEADS, DROPOUT = 64, 2, 4, 0.3
FREQUENCIES = (1, 2, 4)


class SectionTransformer(nn.Module):
    """Tokens are the spots of one section."""

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        n_features, n_genes = sizes(sections)
        self.image = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(n_features, N_HIDDEN))
        self.place = nn.Linear(4 * len(FREQUENCIES), N_HIDDEN)
        layer = nn.TransformerEncoderLayer(
            N_HIDDEN, N_HEADS, 2 * N_HIDDEN, DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, N_LAYERS, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(N_HIDDEN), nn.Linear(N_HIDDEN, n_genes))

    def forward(self, section: Section) -> torch.Tensor:
        """Differences of the spots of a section."""
        tokens = self.image(section.image_tensor) + self.place(waves(section))
        return self.out(self.layers(tokens[None])[0])


def waves(section: Section) -> torch.Tensor:
    """Sines and cosines of the coordinates, which run from -1 to 1 over the longer side of the section."""
    centred = section.positions - (section.positions.min(axis=0) + section.positions.max(axis=0)) / 2
    angles = np.pi / 2 * np.concatenate([f * centred / np.abs(centred).max() for f in FREQUENCIES], axis=1)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
