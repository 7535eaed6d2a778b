"""Folders that one process at a time may write."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def sole_writer(lock: Path, what: object) -> Iterator[None]:
    """Refuse to write what another process or thread is writing; a process that is killed does not keep the lock.

    Parameters
    ----------
    lock
        File that marks the writing, removed afterwards.
    what
        What is written, for the message.

    Raises
    ------
    RuntimeError
        If it is being written already.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"{what} is being written by another process or thread; wait until it is done, or choose another path."
        ) from error
    try:
        yield
    finally:
        # Still held, so that nobody waits for a file that is gone.
        with suppress(OSError):
            lock.unlink()
        held.release()
