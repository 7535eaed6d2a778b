"""A graph network over neighbouring spots: the family of SEPAL.

G. Mejia, P. Cárdenas, D. Ruiz, A. Castillo and P. Arbeláez, "SEPAL: Spatial Gene Expression Prediction from Local
Graphs", ICCV Workshops, 2023 (arXiv 2309.01036).

Simpler than the original: frozen statistics of the patches instead of a vision transformer, both stages are trained
together, and the messages carry no positions. That they run over the whole section at once changes nothing: two layers
reach two steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .sections import Section, sizes

N_HIDDEN, N_LAYERS, DROPOUT = 128, 2, 0.3


class LocalGraph(nn.Module):
    """What the own patch says, corrected by what the patches around it say."""

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        n_features, n_genes = sizes(sections)
        self.image = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(n_features, N_HIDDEN), nn.GELU())
        self.own = nn.ModuleList(nn.Linear(N_HIDDEN, N_HIDDEN) for _ in range(N_LAYERS))
        self.near = nn.ModuleList(nn.Linear(N_HIDDEN, N_HIDDEN) for _ in range(N_LAYERS))
        self.drop = nn.Dropout(DROPOUT)
        self.first, self.correction = nn.Linear(N_HIDDEN, n_genes), nn.Linear(N_HIDDEN, n_genes)

    def forward(self, section: Section) -> torch.Tensor:
        """Differences of the spots of a section."""
        start = code = self.drop(self.image(section.image_tensor))
        for own, near in zip(self.own, self.near, strict=True):
            code = self.drop(F.gelu(own(code) + near(section.mean_of_neighbors @ code)))
        return self.first(start) + self.correction(code)
