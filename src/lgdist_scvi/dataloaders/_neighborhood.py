"""Minibatches of spots with their neighbourhoods, gathered from a view."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, TensorDataset

from lgdist_scvi.data._holdout import MAX_HOLDOUT_SPOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from scipy import sparse

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._view import SpotView

GATHERING_PROCESSES = 2
"""Processes that gather minibatches while a GPU computes."""
LEAST_VALIDATED = 256
"""Where fewer spots are held out, each is validated several times, with other masks and noise."""


class Shuffled(Sampler[int]):
    """Places in an order that depends on the seed and the epoch only.

    Parameters
    ----------
    n
        Number of places.
    seed
        Seed of the order.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed, self._epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Another order; called by Lightning."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self._seed, self._epoch]).permutation(self._n).tolist())


class SharedMinibatches(BatchSampler):
    """Minibatches of one of several processes, which together take those that one alone would take.

    A step of the optimiser uses `n_together` minibatches, and an epoch is made of whole steps.

    Parameters
    ----------
    order
        Order of the spots, alike in all processes.
    batch_size
        Spots per minibatch; fewer in an epoch of one or two steps, so that all are alike.
    n_together
        Minibatches of a step, in all processes.
    rank, n_processes
        Which process this is, and how many there are.
    """

    def __init__(
        self, order: Shuffled, batch_size: int, n_together: int = 1, rank: int = 0, n_processes: int = 1
    ) -> None:
        # What makes no whole step is left out where that is no large part of an epoch.
        self.n_steps, left = divmod(len(order), batch_size * n_together)
        """Steps of the optimiser in an epoch."""
        if self.n_steps < 2 and left:
            self.n_steps += 1
            batch_size = math.ceil(len(order) / (self.n_steps * n_together))
        super().__init__(order, batch_size, drop_last=False)
        self._places = range(rank, self.n_steps * n_together, n_processes)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[list[int]]:
        every = list(super().__iter__())
        return (every[place % len(every)] for place in self._places)  # where there are fewer spots than minibatches


class NeighborhoodDataModule(pl.LightningDataModule):
    """Training and validation minibatches of the first phase.

    All spots are used for training. Only entries are held out, and the view does not contain them.

    Parameters
    ----------
    view
        View of the training data, without held-out entries.
    truth
        View that includes the held-out entries.
    held_out
        True where an entry is held out, ``(n_spots, n_genes)``.
    batch_size
        Spots per minibatch.
    calibrated
        True where an entry is held out for the calibration, none of which `held_out` has, ``(n_spots, n_genes)``.
    """

    def __init__(
        self,
        view: SpotView,
        truth: SpotView,
        held_out: sparse.csr_matrix,
        batch_size: int,
        calibrated: sparse.csr_matrix | None = None,
    ) -> None:
        super().__init__()
        self.view, self.truth, self.held_out = view, truth, held_out
        self._calibrated = calibrated
        self.batch_size = batch_size
        self.seed = 0
        """Seed of the order of the spots."""
        self.train_idx = np.arange(view.n_spots)
        self.val_idx = np.flatnonzero(np.diff(held_out.indptr))

    def for_calibration(self) -> NeighborhoodDataModule:
        """The same data, with the entries that are held out for the calibration in place of those that are scored."""
        return NeighborhoodDataModule(self.view, self.truth, self._calibrated, self.batch_size)

    @property
    def n_train(self) -> int:
        """Spots that are trained on."""
        return len(self.train_idx)

    @property
    def n_val(self) -> int:
        """Spots that are validated on."""
        return len(self.val_idx)

    def n_steps(self, n_together: int = 1) -> int:
        """Steps of the optimiser per epoch, each with so many minibatches, of all processes."""
        return self._minibatches(n_together).n_steps

    def train_dataloader(self) -> DataLoader:
        """Shuffled spots: the minibatches of this process."""
        trainer = self.trainer
        shared = (
            (trainer.world_size * trainer.accumulate_grad_batches, trainer.global_rank, trainer.world_size)
            if trainer
            else ()
        )
        return self._loader(self.train_idx, self.view.gather, batch_sampler=self._minibatches(*shared))

    def _minibatches(self, *shared: int) -> SharedMinibatches:
        return SharedMinibatches(Shuffled(self.n_train, self.seed), self.batch_size, *shared)

    def val_dataloader(self) -> DataLoader | list:
        """Spots with held-out entries: visible minibatch, true counts and mask of the entries to score."""
        return self._loader(self.val_idx, self._validation, batch_size=4 * self.batch_size) if self.n_val else []

    def _validation(self, rows: NDArray[np.int64]) -> tuple[Batch, torch.Tensor, torch.Tensor]:
        counts = torch.from_numpy(self.truth.counts[rows].toarray())
        return self.view.gather(rows), counts, torch.from_numpy(self.held_out[rows].toarray())

    def _loader(
        self, rows: NDArray[np.int64], gather: Callable[[NDArray[np.int64]], Any], **options: Any
    ) -> DataLoader:
        if self.trainer and self.trainer.strategy.root_device.type == "cuda":
            # The GPU does not wait for the CPU to gather the next minibatch, nor to copy it.
            options |= {"num_workers": GATHERING_PROCESSES, "persistent_workers": True, "pin_memory": True}
        spots = TensorDataset(torch.from_numpy(rows))
        return DataLoader(spots, collate_fn=lambda items: gather(_rows(items)), **options)


class CodeDataModule(NeighborhoodDataModule):
    """Training and validation minibatches of the second phase, in which spots are held out.

    The denoiser is trained on the codes of spots, and held-out entries have none. So some spots are validated on and not
    trained on.

    Parameters
    ----------
    data
        Data of the first phase.
    share
        Share of the spots to hold out.
    seed
        Seed of their choice.
    """

    def __init__(self, data: NeighborhoodDataModule, share: float, seed: int) -> None:
        super().__init__(data.view, data.truth, data.held_out, data.batch_size)
        n_spots = data.view.n_spots
        n_held_out = min(math.ceil(share * n_spots), MAX_HOLDOUT_SPOTS, n_spots - 1)
        order = np.random.default_rng(seed).permutation(n_spots)
        self.val_idx, self.train_idx = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])

    def val_dataloader(self) -> DataLoader | list:
        """Spots that are held out."""
        if not self.n_val:
            return []
        rows = np.tile(self.val_idx, math.ceil(LEAST_VALIDATED / self.n_val))
        return self._loader(rows, self.view.gather, batch_size=4 * self.batch_size)


def _rows(items: list[tuple[torch.Tensor]]) -> NDArray[np.int64]:
    return torch.stack([row for (row,) in items]).numpy()
