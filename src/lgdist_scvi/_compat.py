"""The only place that touches private names of scvi-tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich.pretty  # noqa: F401  scvi-tools shows its registry with it and does not import it
from scvi.train._progress import ProgressBar
from scvi.utils import track

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["PhaseProgressBar", "logged_history", "track"]


def logged_history(trainer: Trainer) -> dict[str, pd.DataFrame]:
    """What scvi-tools' logger has recorded; nothing in processes other than the first, which do not log."""
    history = getattr(trainer.logger, "history", None)
    return history if isinstance(history, dict) else {}


class PhaseProgressBar(ProgressBar):
    """Bar of scvi-tools over epochs, labelled with the phase.

    Parameters
    ----------
    label
        Text in front of the bar.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the label in front of the epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.is_enabled:
            self.main_progress_bar.set_description(f"{self.label}, epoch {trainer.current_epoch + 1}")
