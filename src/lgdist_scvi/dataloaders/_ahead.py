"""Work done one step ahead of where it is needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
    """Items and what `work` makes of them; the next is worked on in a thread while the current one is used.

    Parameters
    ----------
    items
        What to work on, in this order.
    work
        Called with one item at a time.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for item in items:
            following = item, pool.submit(work, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
