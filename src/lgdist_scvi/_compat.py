"""The only module that uses private names of scvi-tools and undoes side effects of Lightning on the session."""

from __future__ import annotations

import builtins
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

import rich.pretty  # noqa: F401  scvi-tools uses it to show its registry but does not import it
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.data._constants import _MANAGER_UUID_KEY as MANAGER_UUID_KEY
from scvi.data._constants import _SCVI_UUID_KEY as REGISTRATION_KEY
from scvi.data._download import _download as download
from scvi.model._utils import parse_device_args
from scvi.train import _trainrunner
from scvi.train._progress import ProgressBar
from scvi.utils import track

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from scvi.data import AnnDataManager

__all__ = [
    "MANAGER_UUID_KEY",
    "REGISTRATION_KEY",
    "ForgettingMixin",
    "PhaseProgressBar",
    "download",
    "interruptible",
    "logged_history",
    "track",
    "training_devices",
]


def logged_history(trainer: Trainer) -> dict[str, pd.DataFrame]:
    """Metrics recorded by the logger of scvi-tools; empty in all processes but the first, the only one that logs."""
    history = getattr(trainer.logger, "history", None)
    return history if isinstance(history, dict) else {}


def training_devices(accelerator: str, devices: int | list[int] | str) -> tuple[torch.device, int]:
    """The first device that a training with these arguments runs on, and the number of devices of a machine.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    try:
        _, parsed, device = parse_device_args(accelerator, devices, return_device="torch")
    except Exception as error:  # Lightning and PyTorch raise many kinds
        raise ValueError(
            f"accelerator={accelerator!r} with devices={devices!r} cannot be used on this machine; leave both out, or pass only "
            f"accelerator='cpu'. Lightning says: {' '.join(str(error).split()).rstrip('.!')}."
        ) from error
    return device, len(parsed) if isinstance(parsed, list) else int(parsed)


_OURS = threading.local()


def _say(*values: object, **options: Any) -> None:
    """Print, but for a note of scvi-tools on an error of a training of ours, which is raised anyway."""
    if not (getattr(_OURS, "trains", False) and values[:1] == ("Exception raised during training.",)):
        builtins.print(*values, **options)


vars(_trainrunner)["print"] = _say


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on an interruption: Lightning's trainer exits the process and ignores further ones.

    After a SIGTERM the process exits with the status of that signal, and not with that of success, as Lightning lets it.
    """
    handler = signal.getsignal(signal.SIGINT)
    _OURS.trains = True
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    finally:
        _OURS.trains = False


class PhaseProgressBar(ProgressBar):
    """Progress bar of scvi-tools over epochs, labelled with the phase.

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
    """Frees registrations together with their AnnData or model; scvi-tools itself keeps every registered AnnData.

    The stores of scvi-tools refer to managers weakly, and each AnnData keeps its own managers.
    """

    id: str
    _setup_adata_manager_store: Any
    _per_instance_manager_store: dict[str, Any]

    @classmethod
    def register_manager(cls, adata_manager: AnnDataManager) -> None:
        """Register the manager of an AnnData, for models created later."""
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
    """Managers of one AnnData, by the model or class that registered it; copies of the AnnData have none."""

    def __reduce__(self) -> tuple:
        return _Managers, ()

    def __deepcopy__(self, memo: dict) -> _Managers:
        return _Managers()


def _keep(owner: object, manager: AnnDataManager) -> None:
    vars(manager.adata).setdefault("_lgdist_managers", _Managers())[owner] = manager
