"""Completed expression as layers of an AnnData, in memory or streamed to disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
from anndata import AnnData
from torch import distributed

from lgdist_scvi._constants import IMPUTED_SUFFIX, PACKAGE, STD_SUFFIX, Keys
from lgdist_scvi._memory import require_memory

from ._arguments import Reading
from ._completion import CompletionMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

BLOCK_BYTES = 1 << 26
"""Size of the blocks of spots in which a completion is written."""
_TECHNICAL = ("batch_size", "return_std")


class LayersMixin(CompletionMixin):
    """Completed layers."""

    def add_completed_layer(
        self, adata: AnnData | None = None, *, key_added: str = Keys.LAYER, silent: bool = False, **options: Any
    ) -> None:
        """Write the completed expression to `adata`, with what was imputed and how.

        Writes ``layers[key_added]`` (float32), ``layers[key_added + "_imputed"]`` (True where the value is imputed),
        with `return_std` ``layers[key_added + "_std"]``, and ``uns[key_added]``. The counts are left alone.

        Parameters
        ----------
        adata
            Spots to complete; by default those of the model.
        key_added
            Name of the layer; an earlier completion of this name is replaced.
        silent
            Show no progress bar.
        **options
            Options of :meth:`get_completed_expression`, but for `indices`, `gene_list` and `return_numpy`.

        Raises
        ------
        RuntimeError, KeyError, TypeError, ValueError, FloatingPointError
            As :meth:`get_completed_expression`; also if there is something else of this name.
        MemoryError
            If the layers would take more than half of the memory that is available; :meth:`write_completed` does not.

        Examples
        --------
        >>> model.add_completed_layer(return_std=True)
        >>> values, imputed = adata.layers["lgdist"], adata.layers["lgdist_imputed"]
        >>> values.dtype, imputed.dtype
        (dtype('float32'), dtype('bool'))
        """
        reading = Reading(**options)
        adata, view = self._trained_view(adata, diffusion=reading.n_samples > 0, use_image=reading.use_image)
        _check_key(adata, key_added)
        require_memory(
            adata.n_obs * adata.n_vars * (5 + 4 * reading.return_std),
            f"The completed layers of {adata.n_obs} spots and {adata.n_vars} genes",
            "Write them to disk with write_completed(), or read a part with get_completed_expression().",
        )
        completed = self._complete(view, np.arange(adata.n_obs), reading, silent=silent)
        values, std = completed if reading.return_std else (completed, None)
        adata.layers[key_added] = values
        if std is not None:
            adata.layers[f"{key_added}{STD_SUFFIX}"] = std
        adata.layers[f"{key_added}{IMPUTED_SUFFIX}"] = _imputed(view, slice(None))
        adata.uns[key_added] = self._provenance(reading)

    def write_completed(
        self,
        path: str | Path,
        adata: AnnData | None = None,
        *,
        key_added: str = Keys.LAYER,
        overwrite: bool = False,
        silent: bool = False,
        **options: Any,
    ) -> None:
        """Write `adata` with its completed expression to disk, in memory that does not grow with the completed matrix.

        The file is what :meth:`add_completed_layer` followed by ``adata.write_h5ad`` or ``adata.write_zarr`` would give,
        but the completed layers are never in memory as a whole, and `adata` is not changed. What is too large to be read
        with :func:`anndata.read_h5ad` can be read with :func:`anndata.experimental.read_lazy`.

        Blocks of spots are kept in the folder ``path + ".partial"`` until all are there, so that a call that was
        interrupted, in whatever way, goes on where it was when it is repeated. Where PyTorch's distributed package is
        initialised, the processes share the blocks, and the first of them writes the file.

        Parameters
        ----------
        path
            File to write, ``.h5ad``, or folder, ``.zarr``.
        adata
            Spots to complete; by default those of the model.
        key_added
            Name of the layer, as in :meth:`add_completed_layer`.
        overwrite
            Replace what is at `path`, once the new file is complete.
        silent
            Show no progress bar.
        **options
            Options of :meth:`get_completed_expression`, but for `indices`, `gene_list` and `return_numpy`.

        Raises
        ------
        FileExistsError
            If there is something at `path`.
        FileNotFoundError
            If the folder of `path` does not exist.
        OSError
            If the disk is full; what is complete is kept.
        ValueError
            If `path` ends otherwise, an option or `adata` does not fit, or the blocks that are kept are of another
            model, of other data or of other options.
        RuntimeError, KeyError, TypeError, FloatingPointError
            As :meth:`get_completed_expression`.

        Examples
        --------
        >>> import anndata
        >>> model.write_completed("completed.h5ad")
        >>> "lgdist" in anndata.read_h5ad("completed.h5ad").layers
        True
        """
        path = Path(path)
        if path.suffix not in (".h5ad", ".zarr"):
            raise ValueError(f"The name of the file must end in .h5ad or .zarr, got {path.name!r}.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"The folder {path.parent} does not exist; make it first.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True.")
        reading = Reading(**options)
        adata, view = self._trained_view(adata, diffusion=reading.n_samples > 0, use_image=reading.use_image)
        _check_key(adata, key_added)
        job = {**asdict(reading), **self._provenance(reading), "weights": self._weights_hash(), "data": view.digest()}
        blocks = _Blocks(path.with_name(f"{path.name}.partial"), view, reading.batch_size, job)
        spread_out = distributed.is_available() and distributed.is_initialized()
        rank, n_ranks = (distributed.get_rank(), distributed.get_world_size()) if spread_out else (0, 1)
        try:
            todo = [block for block in blocks.missing() if block % n_ranks == rank]
            rows = [blocks.rows(block) for block in todo]
            batches = self._completed_batches(view, np.concatenate([[], *rows]).astype(int), reading, silent=silent)
            for block, spots in zip(todo, rows, strict=True):
                # Blocks hold whole minibatches.
                _, *arrays = zip(*islice(batches, -(-len(spots) // reading.batch_size)), strict=True)
                blocks.save(block, [np.concatenate(parts) for parts in arrays[: 1 + reading.return_std]])
            if spread_out:
                distributed.barrier()
            if rank == 0:
                layers = {key_added: blocks.layer(0), f"{key_added}{IMPUTED_SUFFIX}": blocks.imputed()}
                if reading.return_std:
                    layers[f"{key_added}{STD_SUFFIX}"] = blocks.layer(1)
                written = blocks.folder / path.name
                _write(adata, layers, {key_added: self._provenance(reading)}, written)
                if path.is_dir():
                    shutil.rmtree(path)
                os.replace(written, path)
                shutil.rmtree(blocks.folder)
            if spread_out:
                distributed.barrier()
        except OSError as error:
            error.add_note(f"What is complete is kept in {blocks.folder}; repeat the call to go on from there.")
            raise

    def _provenance(self, reading: Reading) -> dict[str, Any]:
        options = {name: value for name, value in asdict(reading).items() if name not in _TECHNICAL}
        return {"model": type(self).__name__, "package": PACKAGE, "version": version(PACKAGE), **options}

    def _weights_hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


class _Blocks:
    """Blocks of completed spots, each a file in a folder that knows which completion it is of."""

    def __init__(self, folder: Path, view: SpotView, batch_size: int, job: dict[str, Any]) -> None:
        self.folder, self._view = folder, view
        self._step = batch_size * max(1, BLOCK_BYTES // (4 * view.n_genes * batch_size))
        described, text = folder / "job.json", json.dumps({**job, "spots_per_block": self._step}, indent=1)
        if not described.exists():
            folder.mkdir(exist_ok=True)
            _replace(described, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        elif (found := described.read_text(encoding="utf-8")) != text:
            differs = [name for name, value in json.loads(found).items() if json.loads(text).get(name) != value]
            raise ValueError(
                f"{folder} holds a part of another completion ({', '.join(differs)} differ). Delete it, or choose another "
                "path; with what it was begun with, it would go on."
            )

    def rows(self, block: int) -> NDArray[np.int64]:
        """Spots of a block."""
        return np.arange(block * self._step, min((block + 1) * self._step, self._view.n_spots))

    def missing(self) -> list[int]:
        """Blocks that are not there yet."""
        return [block for block in self._all() if not self._file(block).exists()]

    def save(self, block: int, arrays: list[NDArray[np.float32]]) -> None:
        """Keep the values of a block, and with them the standard deviations where there are any."""

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(file, *arrays)

        _replace(self._file(block), write)

    def layer(self, number: int) -> da.Array:
        """One of the saved arrays, of all spots, ``(n_spots, n_genes)``; read block by block."""
        return self._lazy(lambda block: self._load(block, number), np.float32)

    def imputed(self) -> da.Array:
        """True where an entry is imputed, ``(n_spots, n_genes)``; computed block by block."""
        return self._lazy(lambda block: _imputed(self._view, self.rows(block)), bool)

    def _load(self, block: int, number: int) -> NDArray[np.float32]:
        with np.load(self._file(block)) as arrays:
            return arrays[f"arr_{number}"]

    def _lazy(self, read: Callable[[int], NDArray], dtype: type) -> da.Array:
        def part(block: int) -> da.Array:
            shape = (len(self.rows(block)), self._view.n_genes)
            return da.from_delayed(dask.delayed(partial(read, block), pure=False)(), shape, dtype)

        return da.concatenate([part(block) for block in self._all()])

    def _all(self) -> range:
        return range(-(-self._view.n_spots // self._step))

    def _file(self, block: int) -> Path:
        return self.folder / f"block_{block:06d}.npz"


def _check_key(adata: AnnData, key: str) -> None:
    """Refuse a name under which there is something else."""
    if not isinstance(key, str) or not key:
        raise ValueError(f"key_added={key!r} must be a name.")
    known = adata.uns.get(key)
    if isinstance(known, Mapping) and known.get("package") == PACKAGE:
        return
    layers = [key, f"{key}{IMPUTED_SUFFIX}", f"{key}{STD_SUFFIX}"]
    taken = [f"layers[{name!r}]" for name in layers if name in adata.layers] + [f"uns[{key!r}]"] * (key in adata.uns)
    if taken:
        raise ValueError(
            f"adata has {' and '.join(taken)} already, not from a completion; pass another key_added=... than {key!r}."
        )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is there as a whole or not at all."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _imputed(view: SpotView, rows: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
    return ~view.counts[rows].astype(bool).toarray()


def _write(adata: AnnData, layers: dict[str, da.Array], uns: dict[str, Any], path: Path) -> None:
    """Write `adata` with further layers; `adata` itself stays as it is."""
    extended = AnnData(
        X=adata.X,
        obs=adata.obs,
        var=adata.var,
        uns={**adata.uns, **uns},
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        # In anndata 0.13 layers[None] is X.
        layers={**{name: layer for name, layer in adata.layers.items() if name is not None}, **layers},
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        raw=adata.raw,
    )
    if path.suffix == ".zarr":
        shutil.rmtree(path, ignore_errors=True)
        extended.write_zarr(path)
    else:
        extended.write_h5ad(path, compression="gzip", compression_opts=1)
