"""Minibatches of spots with their neighbourhoods, gathered from a view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._view import SpotView


class NeighborhoodDataModule(pl.LightningDataModule):
    """Training and validation minibatches of one view.

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
    """

    def __init__(self, view: SpotView, truth: SpotView, held_out: sparse.csr_matrix, batch_size: int) -> None:
        super().__init__()
        self.view, self.truth, self.held_out = view, truth, held_out
        self.batch_size = batch_size
        self.train_idx = np.arange(view.n_spots)
        self.val_idx = np.flatnonzero(np.diff(held_out.indptr))
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)

    def train_dataloader(self) -> DataLoader:
        """Shuffled spots; an incomplete last minibatch is dropped if there are at least two full ones."""
        rows = TensorDataset(torch.from_numpy(self.train_idx))
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=self.n_train >= 2 * self.batch_size,
            collate_fn=lambda items: self.view.gather(_rows(items)),
        )

    def val_dataloader(self) -> DataLoader | list:
        """Spots with held-out entries: visible minibatch, true counts and mask of the entries to score."""
        if not self.n_val:
            return []
        rows = TensorDataset(torch.from_numpy(self.val_idx))
        return DataLoader(rows, batch_size=4 * self.batch_size, collate_fn=lambda items: self._validation(_rows(items)))

    def _validation(self, rows: NDArray[np.int64]) -> tuple[Batch, torch.Tensor, torch.Tensor]:
        counts = torch.from_numpy(self.truth.counts[rows].toarray())
        return self.view.gather(rows), counts, torch.from_numpy(self.held_out[rows].toarray())


def _rows(items: list[tuple[torch.Tensor]]) -> NDArray[np.int64]:
    return torch.stack([row for (row,) in items]).numpy()
