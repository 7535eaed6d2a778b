"""Refusal of results that would not fit in memory, and advice when memory runs out."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

USABLE = 0.5
"""Share of the available memory that one result may take; its use needs about as much again."""
# Limits of a container or cluster job: Linux control groups version 2, then version 1.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes that this process may still allocate, given the machine, its container and its own limit."""
    free = [psutil.virtual_memory().available]
    for limit, used in _LIMITS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # there is no such limit, or it is "max"
    if sys.platform != "win32":
        import resource

        own, _ = resource.getrlimit(resource.RLIMIT_AS)
        if own != resource.RLIM_INFINITY:
            free.append(own - psutil.Process().memory_info().vms)
    return max(0, min(free))


def require_memory(n_bytes: int, what: str, remedy: str) -> None:
    """Refuse a result that would not fit.

    Parameters
    ----------
    n_bytes
        Size of the result.
    what, remedy
        Its name and the alternative, for the message.

    Raises
    ------
    MemoryError
        If it takes more than half of the available memory.
    """
    available = available_memory()
    if n_bytes > USABLE * available:
        raise MemoryError(
            f"{what} would take {n_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are available; one result "
            f"may take up to half of that. {remedy}"
        )


@contextmanager
def smaller_batches_suggested() -> Iterator[None]:
    """Suggest a smaller batch size when a minibatch runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On CPUs PyTorch raises a plain RuntimeError, on GPUs a subclass of it.
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            error.add_note("Memory ran out while processing a minibatch: pass a smaller batch_size.")
        raise
