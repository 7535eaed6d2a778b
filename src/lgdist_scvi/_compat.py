"""The only place that touches private names of scvi-tools, and that mends what Lightning does to a session."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

import rich.pretty  # noqa: F401  scvi-tools shows its registry with it and does not import it
from scvi.train._progress import ProgressBar
from scvi.utils import track

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from lightning.pytorch import LightningModule, Trainer
    from scvi.data import AnnDataManager

__all__ = ["ForgettingMixin", "PhaseProgressBar", "interruptible", "logged_history", "track"]


def logged_history(trainer: Trainer) -> dict[str, pd.DataFrame]:
    """What scvi-tools' logger has recorded; nothing in processes other than the first, which do not log."""
    history = getattr(trainer.logger, "history", None)
    return history if isinstance(history, dict) else {}


@contextmanager
def interruptible() -> Iterator[None]:
    """Let an interruption of Lightning's trainer be one: it exits the process and ignores all further ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


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


class ForgettingMixin:
    """Registrations that end with their AnnData or model; scvi-tools alone keeps every AnnData it has ever met.

    The stores of scvi-tools refer to managers weakly, and each AnnData keeps its own managers.
    """

    id: str
    _setup_adata_manager_store: Any
    _per_instance_manager_store: dict[str, Any]

    @classmethod
    def register_manager(cls, adata_manager: AnnDataManager) -> None:
        """Register the manager of an AnnData, for models yet to be made."""
        if not isinstance(cls._setup_adata_manager_store, WeakValueDictionary):
            cls._setup_adata_manager_store = WeakValueDictionary(cls._setup_adata_manager_store)
        _keep(cls, adata_manager)
        super().register_manager(adata_manager)  # type: ignore[misc]

    def _register_manager_for_instance(self, adata_manager: AnnDataManager) -> None:
        if self.id not in self._per_instance_manager_store:
            self._per_instance_manager_store[self.id] = WeakValueDictionary()
            finalize(self, self._per_instance_manager_store.pop, self.id, None)
        _keep(self, adata_manager)
        super()._register_manager_for_instance(adata_manager)  # type: ignore[misc]


class _Managers(WeakKeyDictionary):
    """Managers of one AnnData, of each model that has met it; copies of the AnnData have none."""

    def __reduce__(self) -> tuple:
        return _Managers, ()

    def __deepcopy__(self, memo: dict) -> _Managers:
        return _Managers()


def _keep(owner: object, manager: AnnDataManager) -> None:
    vars(manager.adata).setdefault("_lgdist_managers", _Managers())[owner] = manager
