"""Checks of arguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in (choices := tuple(choices)):
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")


def check_whole(least: int, **values: Any) -> None:
    """Refuse what is not a whole number of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_share(**values: Any) -> None:
    """Refuse what is not a number of at least 0 and below 1."""
    for name, value in values.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value < 1:
            raise ValueError(f"{name}={value!r} must be in [0, 1).")


def check_positive(**values: Any) -> None:
    """Refuse what is not a finite number above 0."""
    for name, value in values.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name}={value!r} must be a number above 0.")
