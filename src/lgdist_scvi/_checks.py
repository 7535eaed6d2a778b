"""Checks of arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable


LARGEST_SEED = 2**32 - 1


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in (choices := tuple(choices)):
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")


def check_name(**values: Any) -> None:
    """Refuse what is not a name under which an AnnData can be stored: in a file it would be a path."""
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip(".") or set(value) & set("/\\\0"):
            raise ValueError(f"{name}={value!r} must be a name, not empty, without a slash and not of dots alone.")


def check_label(**values: Any) -> None:
    """Refuse what cannot be the name of a column or an array, such as a list of names."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Hashable):
            raise TypeError(f"{name}={value!r} must be one name, as text.")


def check_path(**values: Any) -> None:
    """Refuse what is not a path."""
    for name, value in values.items():
        if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
            raise TypeError(f"{name}={value!r} must be a path, as text or pathlib.Path.")


def check_flag(**values: Any) -> None:
    """Refuse what is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}={value!r} must be True or False.")


def check_whole(least: int, **values: Any) -> None:
    """Refuse what is not a whole number of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_seed(seed: Any) -> None:
    """Refuse what is not a whole number that all random number generators take."""
    check_whole(0, seed=seed)
    if seed > LARGEST_SEED:
        raise ValueError(f"seed={seed!r} must be at most {LARGEST_SEED}.")


def check_numbers(least: float, **values: Any) -> None:
    """Refuse what is not a finite number of at least `least`."""
    for name, value in values.items():
        if not _is_finite(value) or value < least:
            raise ValueError(f"{name}={value!r} must be a finite number of at least {least:g}.")


def check_session() -> None:
    """Refuse a state of PyTorch in which weights and data would be of other kinds than the model is made of."""
    made = torch.empty(0)
    if made.dtype != torch.float32:
        raise RuntimeError(
            f"PyTorch's default type of numbers is {made.dtype}, and the model computes in single precision; call "
            "torch.set_default_dtype(torch.float32) first."
        )
    if made.device.type == "meta":
        raise RuntimeError("PyTorch's default device is 'meta', which has no values; leave torch.device('meta') first.")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise RuntimeError(
            "PyTorch's autocast is on, in which completed values would be of half precision; leave torch.autocast first. To train "
            "in mixed precision pass precision='16-mixed' or 'bf16-mixed'."
        )


def check_share(**values: Any) -> None:
    """Refuse what is not a number of at least 0 and below 1."""
    for name, value in values.items():
        if not _is_finite(value) or not 0 <= value < 1:
            raise ValueError(f"{name}={value!r} must be in [0, 1).")


def check_between(least: float, most: float, **values: Any) -> None:
    """Refuse what is not a number between two others, without these."""
    for name, value in values.items():
        if not _is_finite(value) or not least < value < most:
            raise ValueError(f"{name}={value!r} must be between {least:g} and {most:g}.")


def check_positive(**values: Any) -> None:
    """Refuse what is not a finite number above 0."""
    for name, value in values.items():
        if not _is_finite(value) or value <= 0:
            raise ValueError(f"{name}={value!r} must be a number above 0.")


def _is_finite(value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value)
