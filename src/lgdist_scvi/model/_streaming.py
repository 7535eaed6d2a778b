"""Completions written to disk block by block, so that memory does not grow with them."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import zarr
from anndata import AnnData
from torch import distributed

from lgdist_scvi._exclusive import sole_writer
from lgdist_scvi._forks import is_forked
from lgdist_scvi._quiet import quiet

from ._manifest import hash_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._reader import Completed

BLOCK_BYTES = 1 << 26
"""Size of the blocks of spots in which completed values are written."""


class Blocks:
    """Blocks of completed spots, one file each, in a folder that records the completion they belong to."""

    def __init__(self, folder: Path, view: SpotView, batch_size: int, job: dict[str, Any]) -> None:
        self.folder, self._view, self._batch_size = folder, view, batch_size
        self._step = batch_size * max(1, BLOCK_BYTES // (4 * view.n_genes * batch_size))
        described, text = folder / "job.json", json.dumps({**job, "spots_per_block": self._step}, indent=1)
        self._job, self._n_arrays = text, 1 + bool(job["return_std"])
        if not described.exists():
            if folder.exists() and not (folder.is_dir() and all(map(_is_scratch, os.listdir(folder)))):
                raise ValueError(_foreign(folder))
            folder.mkdir(exist_ok=True)
            _replace(described, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        elif (started := _job(described)) != (wanted := json.loads(text)):
            if "spots_per_block" not in started:
                raise ValueError(_foreign(folder))
            differs = [name for name in {**wanted, **started} if started.get(name) != wanted.get(name)]
            raise ValueError(
                f"{folder} holds a part of another completion ({', '.join(differs)} differ). Delete it, choose another path, or "
                "repeat the original call to continue it."
            )

    def rows(self, block: int) -> NDArray[np.int64]:
        """Spots of a block."""
        return np.arange(block * self._step, min((block + 1) * self._step, self._view.n_spots))

    def minibatches(self, spots: NDArray[np.int64]) -> int:
        """Number of minibatches that make up a block of these spots."""
        return -(-len(spots) // self._batch_size)

    def missing(self, first: int = 0, step: int = 1) -> list[int]:
        """Every `step`-th block from the `first` on that is not complete yet, or no longer what was written."""
        return [block for block in self._all()[first::step] if not self._is_whole(block)]

    def save(self, block: int, arrays: list[NDArray[np.float32]]) -> None:
        """Store the values of a block and, if any, their standard deviations, with their hash."""
        known = np.array(self._hash(block, arrays))

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(file, *arrays, known)

        _replace(self._file(block), write)

    def layer(self, number: int) -> da.Array:
        """One of the stored arrays for all spots, ``(n_spots, n_genes)``; read block by block."""
        return self._lazy(lambda block: self._load(block, number), np.float32)

    def imputed(self) -> da.Array:
        """True where an entry is imputed, ``(n_spots, n_genes)``; computed block by block."""
        return self._lazy(lambda block: imputed(self._view, self.rows(block)), bool)

    def finish(self, written: Path, path: Path) -> None:
        """Move the file that was written from them to its place, and remove the blocks, but nothing that others put beside them."""
        old = self.folder / f"old_{path.name}"
        if path.is_dir():
            os.replace(path, old)
        os.replace(written, path)
        shutil.rmtree(old, ignore_errors=True)
        for name in filter(_is_own, os.listdir(self.folder)):
            (self.folder / name).unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _load(self, block: int, number: int) -> NDArray[np.float32]:
        with np.load(self._file(block)) as arrays:
            return arrays[f"arr_{number}"]

    def _is_whole(self, block: int) -> bool:
        """Whether a block is there and as it was written; warns if it is there and not."""
        if not (file := self._file(block)).exists():
            return False
        try:
            *arrays, known = (self._load(block, number) for number in range(self._n_arrays + 1))
            whole = str(known) == self._hash(block, arrays)
        except Exception:  # noqa: BLE001  damaged bytes can raise any error
            whole = False
        if not whole and not file.is_file():
            raise ValueError(_foreign(file))
        if not whole:
            warnings.warn(f"{file} is damaged or of another block; it is computed again.", UserWarning, stacklevel=5)
        return whole

    def _hash(self, block: int, arrays: list[NDArray[np.float32]]) -> str:
        return hash_of([self._job, block, arrays])

    def _lazy(self, read: Callable[[int], NDArray], dtype: type) -> da.Array:
        def part(block: int) -> da.Array:
            shape = (len(self.rows(block)), self._view.n_genes)
            return da.from_delayed(dask.delayed(partial(read, block), pure=False)(), shape, dtype)

        return da.concatenate([part(block) for block in self._all()])

    def _all(self) -> range:
        return range(-(-self._view.n_spots // self._step))

    def _file(self, block: int) -> Path:
        return self.folder / f"block_{block:06d}.npz"


def fill(blocks: Blocks, batches: Callable[[NDArray[np.int64]], Iterator[Completed]], *, return_std: bool) -> bool:
    """Complete the missing blocks; processes that work together share them.

    Parameters
    ----------
    blocks
        Blocks to fill.
    batches
        Completed minibatches of spots. Blocks hold whole minibatches.
    return_std
        Keep the standard deviations as well.

    Returns
    -------
    Whether all blocks are there and this process is to write the file.
    """
    rank, n_ranks = _rank()
    todo = blocks.missing(rank, n_ranks)
    rows = [blocks.rows(block) for block in todo]
    completed = batches(np.concatenate([[], *rows]).astype(int))
    for block, spots in zip(todo, rows, strict=True):
        parts = list(islice(completed, blocks.minibatches(spots)))
        arrays = [np.concatenate([part.values for part in parts])]
        if return_std:
            arrays.append(np.concatenate([part.std for part in parts]))
        blocks.save(block, arrays)
    if n_ranks > 1:
        distributed.barrier()
    return rank == 0


def first_writer(lock: Path, path: Path) -> AbstractContextManager[None]:
    """Refuse a path that another process writes, but for those that work together, of which the first holds the lock."""
    return sole_writer(lock, path) if _rank()[0] == 0 else nullcontext()


def _rank() -> tuple[int, int]:
    """Number of this process among those that work together, and how many these are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def write_extended(
    adata: AnnData, layers: dict[str, da.Array], uns: dict[str, Any], path: Path, replaced: list[str]
) -> None:
    """Write `adata` with further layers, and without those that are `replaced`; `adata` itself is not changed."""
    # In anndata 0.13 layers[None] is X.
    kept = {name: layer for name, layer in adata.layers.items() if name is not None and name not in replaced}
    extended = AnnData(
        X=adata.X,
        obs=adata.obs,
        var=adata.var,
        uns={**adata.uns, **uns},
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers={**kept, **layers},
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        raw=adata.raw,
    )
    with _threads_of_this_process():
        if path.suffix == ".zarr":
            shutil.rmtree(path, ignore_errors=True)
            with quiet():
                extended.write_zarr(path)
        else:
            extended.write_h5ad(path, compression="gzip", compression_opts=1)


@contextmanager
def _threads_of_this_process() -> Iterator[None]:
    """Threads for dask in a forked process, where those of its pool, to which anndata leaves the blocks, do not exist."""
    if not is_forked():
        yield
        return
    with ThreadPoolExecutor() as pool, dask.config.set(pool=pool):
        yield


def imputed(view: SpotView, rows: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
    return ~view.counts[rows].astype(bool).toarray()


def check_replaceable(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but a file by a file, and an AnnData or an empty folder by an AnnData.

    Raises
    ------
    FileExistsError
        If something else has the name, or if anything has it and nothing is to be replaced.
    """
    for name in (path.name, f"{path.name}.partial", f".{path.name}.lock"):
        try:
            os.lstat(path.with_name(name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}): choose a shorter or another name."
            ) from error
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True.")
    if not path.exists() or (path.suffix == ".h5ad" and path.is_file()):
        return
    if path.suffix == ".h5ad":
        raise FileExistsError(f"{path} is a folder; choose another name.")
    if not path.is_dir() or (os.listdir(path) and not _is_stored_anndata(path)):
        raise FileExistsError(f"{path} is not an AnnData that was written as zarr; choose another name.")


def _is_stored_anndata(path: Path) -> bool:
    try:
        return zarr.open_group(path, mode="r").attrs.get("encoding-type") == "anndata"
    except (OSError, ValueError):
        return False


def _job(described: Path) -> dict[str, Any]:
    try:
        found = json.loads(described.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError):
        found = None
    return found if isinstance(found, dict) else {}


def _foreign(folder: Path) -> str:
    return (
        f"{folder} is needed for the blocks, but was not written by write_completed(); choose another path, or move it."
    )


def _is_own(name: str) -> bool:
    """Whether a file is one that :class:`Blocks` writes."""
    return re.fullmatch(r"(job\.json|block_\d{6}\.npz)(\.\d+)?", name) is not None


def _is_scratch(name: str) -> bool:
    """Whether a file is what a process leaves that is killed before it has described its work."""
    return re.fullmatch(r"job\.json\.\d+", name) is not None


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: it appears complete or not at all."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
