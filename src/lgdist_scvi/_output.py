"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData


class UserError(Exception):
    """A mistake of the user, which the command line reports in one line."""


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check that a file can be written, without a trace.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether the file may exist already.

    Raises
    ------
    UserError
        If it cannot.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file.")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists already; name another file or add --overwrite.")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist; make it first.")
    try:
        # Permissions alone do not tell: the file system may be read-only or full.
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"0")
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be written to ({error.strerror or error}).") from error


def write_aside(adata: AnnData, path: Path, *, overwrite: bool) -> None:
    """Write an h5ad file in a temporary folder beside its place, then move it there.

    The temporary folder is removed whatever happens, an interruption included.

    Parameters
    ----------
    adata
        What to write; the bookkeeping of scvi-tools, which means nothing in another session, is removed from it.
    path
        Where to.
    overwrite
        Whether the file may exist already.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    for table in (adata.obs, adata.uns):
        for key in [key for key in table if str(key).startswith("_scvi_")]:
            del table[key]
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            partial = Path(folder, "partial.h5ad")
            adata.write_h5ad(partial, compression="gzip")
            # Training took its time: somebody else may have put a file there meanwhile.
            check_target(path, overwrite=overwrite)
            os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}).") from error
