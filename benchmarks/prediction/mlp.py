"""A network on each spot's own patch: the family of ST-Net.

B. He, L. Bergenstråhle, L. Stenbeck, A. Abid, A. Andersson, Å. Borg, J. Maaskola, J. Lundeberg and J. Zou, "Integrating
spatial gene expression and breast tumour morphology via deep learning", Nature Biomedical Engineering, 2020.

Simpler than the original: a small head on frozen statistics of the patch instead of a convolutional network that is
trained with it, and no turned and mirrored patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .sections import Section, sizes

N_HIDDEN, DROPOUT = 256, 0.3


class PatchHead(nn.Module):
    """One hidden layer."""

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        n_features, n_genes = sizes(sections)
        self.layers = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Linear(n_features, N_HIDDEN),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(N_HIDDEN, n_genes),
        )

    def forward(self, section: Section) -> torch.Tensor:
        """Differences of the spots of a section."""
        return self.layers(section.image_tensor)
