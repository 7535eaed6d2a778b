"""What a predictor gets of a section, and what all predictors share: gene means, masked errors, one training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import nn

from lgdist_scvi.data._neighbors import spatial_graph
from lgdist_scvi.train._seeds import seeded

Floats = NDArray[np.floating]
N_NEIGHBORS = 6
# Of the training of every network: a fixed number of steps, as of so few sections none is left to stop by.
N_STEPS, RATE, DECAY = 300, 1e-3, 0.1


@dataclass(frozen=True, eq=False)
class Section:
    """Spots of a section: embedded images, positions and, of a section to learn from, values of every gene.

    ``values`` are log values of shape ``(n_spots, n_genes)``; where ``seen`` is False they are never looked at.
    """

    name: str
    image: NDArray[np.float32]
    positions: Floats
    values: Floats | None = None
    seen: NDArray[np.bool_] | None = None

    @cached_property
    def graph(self) -> sparse.csr_matrix:
        """Nearest spots of every spot, as ones."""
        return spatial_graph(self.positions, None, N_NEIGHBORS)[0]

    @cached_property
    def mean_of_neighbors(self) -> torch.Tensor:
        """Matrix that takes the mean over the neighbours of every spot."""
        graph = self.graph.toarray()
        return torch.from_numpy(graph / np.maximum(graph.sum(axis=1, keepdims=True), 1))

    @cached_property
    def image_tensor(self) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.image, dtype=np.float32))

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and whether they are seen, as numbers."""
        return torch.from_numpy(self.values.astype(np.float32)), torch.from_numpy(self.seen.astype(np.float32))


class Predictor(ABC):
    """The gene means of the training, and what is learnt to differ from them."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, sections: Sequence[Section]) -> Self:
        """Learn from sections with values."""
        seen = np.concatenate([section.seen for section in sections])
        # What is not seen becomes 0 here, so that nothing that follows can depend on it.
        values = [np.where(section.seen, section.values, 0.0) for section in sections]
        self.mean = np.concatenate(values).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        with seeded(self.seed):
            self.learn([replace(s, values=(v - self.mean) * s.seen) for s, v in zip(sections, values, strict=True)])
        return self

    def predict(self, section: Section) -> Floats:
        """Log values of every spot and gene, from the image and the positions alone."""
        blind = replace(section, values=None, seen=None)
        with torch.no_grad():
            return self.mean + self.differences(blind)

    @abstractmethod
    def learn(self, sections: Sequence[Section]) -> None:
        """Learn from differences to the gene means, which are 0 where nothing is seen."""

    @abstractmethod
    def differences(self, section: Section) -> Floats:
        """Predicted differences to the gene means."""


class Mean(Predictor):
    """Nothing but the gene means: what a predictor has to beat that looks at the image."""

    def learn(self, sections: Sequence[Section]) -> None:
        pass

    def differences(self, section: Section) -> Floats:
        return np.zeros((len(section.image), len(self.mean)))


class Regression(Predictor):
    """A network from a section to the differences of its spots, trained by their squared error.

    Parameters
    ----------
    network
        Takes the training sections and gives a module that takes a section.
    """

    def __init__(self, network: Callable[[Sequence[Section]], nn.Module], seed: int = 0) -> None:
        super().__init__(seed)
        self.build = network

    def learn(self, sections: Sequence[Section]) -> None:
        self.network = self.build(sections)

        def squared_error(section: Section) -> torch.Tensor:
            values, seen = section.tensors
            return ((self.network(section) - values).square() * seen).sum() / seen.sum()

        train(self.network, squared_error, sections)

    def differences(self, section: Section) -> Floats:
        return self.network(section).numpy()


def train(module: nn.Module, loss: Callable[[Section], torch.Tensor], sections: Sequence[Section]) -> None:
    """Train a module a section at a time, each of them once before any comes again."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    order: list[int] = []
    module.train()
    for _ in range(N_STEPS):
        order = order or torch.randperm(len(sections)).tolist()
        optimizer.zero_grad()
        loss(sections[order.pop()]).backward()
        optimizer.step()
        schedule.step()
    module.eval()


def sizes(sections: Sequence[Section]) -> tuple[int, int]:
    """Numbers of features and of genes."""
    return sections[0].image.shape[1], sections[0].values.shape[1]
