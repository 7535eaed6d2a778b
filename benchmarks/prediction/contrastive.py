"""Retrieval of expression by image in a space that both share: the family of BLEEP.

R. Xie, K. Pang, S. W. Chung, C. T. Perciani, S. A. MacParland, B. Wang and G. D. Bader, "Spatially Resolved Gene
Expression Prediction from Histology Images via Bi-modal Contrastive Learning", NeurIPS, 2023 (arXiv 2306.01859).

Simpler than the original: frozen statistics of the patches instead of a convolutional network, codes of unit length, a
fixed temperature, and a batch is a section.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .sections import Floats, Predictor, Section, sizes, train

N_CODE, DROPOUT, TEMPERATURE = 128, 0.3, 0.1
N_RETRIEVED = 100


class Contrastive(Predictor):
    """The mean of the spots whose expression lies nearest to the image."""

    def learn(self, sections: Sequence[Section]) -> None:
        n_features, n_genes = sizes(sections)
        self.of_image, self.of_expression = head(n_features), head(n_genes)

        def loss(section: Section) -> torch.Tensor:
            image = F.normalize(self.of_image(section.image_tensor), dim=1)
            expression = F.normalize(self.of_expression(section.tensors[0]), dim=1)
            pairs = image @ expression.T / TEMPERATURE
            # Spots that look alike, or express alike, are half right.
            alike = ((image @ image.T + expression @ expression.T) / 2 / TEMPERATURE).softmax(dim=1).detach()
            return (F.cross_entropy(pairs, alike) + F.cross_entropy(pairs.T, alike)) / 2

        train(nn.ModuleList([self.of_image, self.of_expression]), loss, sections)
        self.bank = sections

    def differences(self, section: Section) -> Floats:
        # A section of the training is predicted from the others, as one never seen is.
        bank = [other for other in self.bank if other.name != section.name] or self.bank
        values = np.concatenate([other.values for other in bank])
        seen = np.concatenate([other.seen for other in bank])
        keys = F.normalize(self.of_expression(torch.cat([other.tensors[0] for other in bank])), dim=1)
        likeness = F.normalize(self.of_image(section.image_tensor), dim=1) @ keys.T
        nearest = likeness.topk(min(N_RETRIEVED, len(values)), dim=1).indices.numpy()
        return values[nearest].sum(axis=1) / np.maximum(seen[nearest].sum(axis=1), 1)


def head(n_inputs: int) -> nn.Module:
    """Codes of images or of expression."""
    layers = (
        nn.Dropout(DROPOUT),
        nn.Linear(n_inputs, N_CODE),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(N_CODE, N_CODE),
    )
    return nn.Sequential(*layers)
