"""Which modules are being trained, so that nothing reads weights while they change."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from lgdist_scvi._checks import check_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

_LOCK = threading.Lock()
_TRAINERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Thread that trains a module."""
_TRAININGS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Number of trainings of a module that have begun."""

Method = TypeVar("Method", bound="Callable[..., Any]")


@contextmanager
def _trained(module: nn.Module) -> Iterator[None]:
    with _LOCK:
        _refuse(module)
        _TRAINERS[module] = threading.get_ident()
        _TRAININGS[module] = _TRAININGS.get(module, 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            _TRAINERS.pop(module, None)


def trains(method: Method) -> Method:
    """Let a method of a model train its module, which nothing else may train or read meanwhile."""

    @wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_session()
        with _trained(self.module):
            return method(self, *args, **kwargs)

    return alone  # type: ignore[return-value]


def refuse_while_trained(module: nn.Module) -> None:
    """Refuse a module that is being trained, by whichever thread.

    Raises
    ------
    RuntimeError
        If it is.
    """
    with _LOCK:
        _refuse(module)


def _refuse(module: nn.Module) -> None:
    if module in _TRAINERS:
        raise RuntimeError(
            "The model is being trained, and its weights change meanwhile: wait until train() returns, also before you train it "
            "again, read from it or save it (a callback of the training cannot). Train a second model in another thread."
        )


class Steady:
    """Notices that a training began while a module is read; the thread that trains it may read it itself."""

    def __init__(self, module: nn.Module) -> None:
        with _LOCK:
            if _TRAINERS.get(module, threading.get_ident()) != threading.get_ident():
                _refuse(module)
            self._module, self._began = module, _TRAININGS.get(module, 0)

    def check(self) -> None:
        """Refuse what was read if a training has begun since.

        Raises
        ------
        RuntimeError
            If one has.
        """
        if _TRAININGS.get(self._module, 0) != self._began:
            raise RuntimeError(
                "Another thread began to train the model while it was read, so the values would be those of two models. Read again "
                "when train() has returned."
            )
