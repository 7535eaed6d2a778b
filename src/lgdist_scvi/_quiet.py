"""Silences what the packages below say about themselves, so that a training shows what is ours."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "scvi")
_NOT_OURS = (
    r".*LeafSpec.*is deprecated",  # Lightning calls what PyTorch deprecates
    r".*does not have many workers",  # minibatches are gathered in memory
    r"Total length of `\w+` across ranks is zero",  # nothing is held out
    r"Found \d+ module\(s\) in eval mode",  # the frozen autoencoder is meant to be
    r"The epoch parameter in `scheduler\.step\(\)`",  # PyTorch's SequentialLR calls what PyTorch deprecates
    r"'\w+' is not a valid key!",  # docstrings of squidpy
    r"zarr v3 autosharding",  # anndata's announcements of what it will write by default
    r"Writing zarr v2 data",
    r"Variable names are not unique",  # the readers number them
)


# Filters and levels are those of all threads: the first that is quiet sets them, the last puts them back.
_LOCK = threading.Lock()
_SET = ExitStack()
_n_quiet = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Let the packages below say nothing but warnings, and of these not the ones about themselves.

    Warnings of this package, and all that a user may act on, are shown.
    """
    global _n_quiet
    with _LOCK:
        if not _n_quiet:
            _SET.enter_context(_set())
        _n_quiet += 1
    try:
        yield
    finally:
        with _LOCK:
            _n_quiet -= 1
            if not _n_quiet:
                _SET.close()


@contextmanager
def _set() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _NOT_OURS:
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(max(level, logging.WARNING))
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def few_messages() -> Iterator[None]:
    """Hide log messages and warnings of other packages, and print our warnings in one line each, for the command line."""
    with quiet():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="lgdist_scvi")
        warnings.showwarning = lambda message, *_, **__: print(
            f"lgdist-scvi: warning: {' '.join(str(message).split())}", file=sys.stderr
        )
        yield
