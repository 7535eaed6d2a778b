"""The spots that look most alike, attended to with their expression: the family of EGN.

Y. Yang, M. Z. Hossain, E. A. Stone and S. Rahman, "Exemplar Guided Deep Neural Network for Spatial Transcriptomics
Analysis of Gene Expression Prediction", WACV, 2023 (arXiv 2210.16721).

Simpler than the original: exemplars are found by the distance of frozen embeddings instead of a space learnt for it, and
cross-attention in two layers revises one code of a spot instead of the tokens of a vision transformer. Exemplars come
from other sections than the spot, in training as well, because of a new section nothing else is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .sections import Section, sizes

N_EXEMPLARS, N_HIDDEN, N_LAYERS, N_HEADS, DROPOUT = 10, 64, 2, 4, 0.3


class Exemplars(nn.Module):
    """A code of a spot's image, revised by its exemplars."""

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        n_features, n_genes = sizes(sections)
        self.bank = sections
        self.found = {section.name: self.exemplars(section) for section in sections}
        self.image = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(n_features, N_HIDDEN))
        self.unlike = nn.Linear(n_features, N_HIDDEN)
        self.expression = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(n_genes, N_HIDDEN))
        self.layers = nn.ModuleList(Revision() for _ in range(N_LAYERS))
        self.out = nn.Sequential(nn.LayerNorm(N_HIDDEN), nn.Linear(N_HIDDEN, n_genes))

    def forward(self, section: Section) -> torch.Tensor:
        """Differences of the spots of a section."""
        unlike, values = self.found.get(section.name) or self.exemplars(section)
        code, tokens = self.image(section.image_tensor)[:, None], self.unlike(unlike) + self.expression(values)
        for layer in self.layers:
            code = layer(code, tokens)
        return self.out(code[:, 0])

    def exemplars(self, section: Section) -> tuple[torch.Tensor, torch.Tensor]:
        """How the images of the exemplars differ, and their values; ``(n_spots, n_exemplars, ...)``."""
        bank = [other for other in self.bank if other.name != section.name] or self.bank
        images = torch.cat([other.image_tensor for other in bank])
        distances = torch.cdist(section.image_tensor, images)
        nearest = distances.topk(min(N_EXEMPLARS, len(images)), dim=1, largest=False).indices
        values = torch.cat([other.tensors[0] for other in bank])
        return images[nearest] - section.image_tensor[:, None], values[nearest]


class Revision(nn.Module):
    """A layer of cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(N_HIDDEN) for _ in range(3))
        self.attention = nn.MultiheadAttention(N_HIDDEN, N_HEADS, DROPOUT, batch_first=True)
        self.forward_ = nn.Sequential(
            nn.Linear(N_HIDDEN, 2 * N_HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(2 * N_HIDDEN, N_HIDDEN)
        )

    def forward(self, code: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Revise codes ``(n, 1, h)`` by tokens ``(n, k, h)``."""
        tokens = self.norms[0](tokens)
        code = code + self.attention(self.norms[1](code), tokens, tokens, need_weights=False)[0]
        return code + self.forward_(self.norms[2](code))
