"""Writing of files that get their name only once they are complete."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# HDF5 and PyTorch have errors of their own.
_FAILED = ("write failed", "ref count", "PytorchStreamWriter")


def is_of_disk(error: Exception) -> bool:
    """Whether an error is that of a disk that is full, read-only or broken."""
    return (isinstance(error, OSError) and error.errno in _DISK) or any(words in str(error) for words in _FAILED)


class UserError(Exception):
    """A user error, which the command line reports in one line."""


def say_to_stdout(text: str) -> None:
    """Print, also where nobody reads it any more, as below ``head``: the output is a file."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left of it would be written, and fail, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check that a file can be written, without leaving anything behind.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    UserError
        If it cannot.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose a shorter or another name.") from error
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file.")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists already; name another file or add --overwrite.")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist; create it first.")
    try:
        # Permissions are not enough: the file system may be read-only or full.
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"0")
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be written to ({error.strerror or error}).") from error


def bookkeeping(adata: AnnData) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of ``obs`` and entries of ``uns`` with names as scvi-tools gives them."""
    obs, uns = ({key: table[key] for key in table if str(key).startswith("_scvi_")} for table in (adata.obs, adata.uns))
    return obs, uns


def write_aside(adata: AnnData, path: Path, *, overwrite: bool, kept: Sequence[dict[str, Any]] = ({}, {})) -> None:
    """Write an h5ad file to a temporary folder beside its target, then move it there.

    The temporary folder is always removed, also after an interruption.

    Parameters
    ----------
    adata
        Data to write; the bookkeeping of scvi-tools, meaningless in other sessions, is removed from it.
    path
        Target file.
    overwrite
        Whether an existing file may be replaced.
    kept
        Result of :func:`bookkeeping` from before the registration: what the user had under such names, which is put back.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    for table, written, mine in zip((adata.obs, adata.uns), bookkeeping(adata), kept, strict=True):
        for key in written:
            if key in mine:
                table[key] = mine[key]
            else:
                del table[key]
    try:
        with tempfile.TemporaryDirectory(prefix=".lgdist_", dir=path.parent) as folder:
            partial = Path(folder, "partial.h5ad")
            adata.write_h5ad(partial, compression="gzip")
            # Another file may have appeared there during training.
            check_target(path, overwrite=overwrite)
            os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        if not (isinstance(error, OSError) or is_of_disk(error)):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(f"{path} could not be written ({reason}).") from error
