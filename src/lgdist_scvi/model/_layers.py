"""Completed expression as layers of an AnnData, in memory or streamed to disk."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._checks import check_name, check_path
from lgdist_scvi._constants import IMPUTED_SUFFIX, PACKAGE, STD_SUFFIX, Keys
from lgdist_scvi._memory import require_memory
from lgdist_scvi._output import is_of_disk
from lgdist_scvi.data._regions import annotating_table

from ._base import LGDiSTBase
from ._manifest import hash_of
from ._reader import Reader
from ._spatialdata import put_into_table
from ._stores import stored_table, write_layers
from ._streaming import Blocks, check_replaceable, fill, first_writer, imputed, write_extended

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._options import Reading

# Arguments of the registration that are kept beside a completed layer, so that plots need not be told.
_REGISTERED = ("layer", "observed_layer", "size_factor_key", "library_key")
_TECHNICAL = ("batch_size", "return_std")


class LayersMixin(LGDiSTBase):
    """Completed layers."""

    def add_completed_layer(
        self, adata: AnnData | None = None, *, key_added: str = Keys.LAYER, silent: bool = False, **options: Any
    ) -> None:
        """Write the completed expression to `adata`, with the mask of imputed entries and the options used.

        Writes ``layers[key_added]`` (float32), ``layers[key_added + "_imputed"]`` (True where the value is imputed),
        with `return_std` ``layers[key_added + "_std"]``, and ``uns[key_added]``. The counts are not changed.

        Parameters
        ----------
        adata
            Spots to complete; by default those of the model.
        key_added
            Name of the layer; an earlier completed layer of this name is replaced.
        silent
            Show no progress bar.
        **options
            Options of :meth:`get_completed_expression`, but for `indices`, `gene_list` and `return_numpy`.

        Raises
        ------
        RuntimeError, KeyError, TypeError, ValueError, FloatingPointError
            As :meth:`get_completed_expression`; also if other data has this name.
        MemoryError
            If the layers would take more than half of the available memory; use :meth:`write_completed` instead.

        Examples
        --------
        >>> model.add_completed_layer(return_std=True)
        >>> values, imputed = adata.layers["lgdist"], adata.layers["lgdist_imputed"]
        >>> values.dtype, imputed.dtype
        (dtype('float32'), dtype('bool'))
        """
        reading = self._reading(**options)
        adata, view = self._trained_view(adata, diffusion=reading.n_samples > 0, use_image=reading.use_image)
        check_key(adata.layers, adata.uns, key_added)
        require_memory(
            adata.n_obs * adata.n_vars * (5 + 4 * reading.return_std),
            f"The completed layers of {adata.n_obs} spots and {adata.n_vars} genes",
            "Write them to disk with write_completed(), or read a part with get_completed_expression().",
        )
        completed = Reader(self.module, view, reading).read(np.arange(adata.n_obs), silent=silent)
        layers = {key_added: completed.values, f"{key_added}{IMPUTED_SUFFIX}": imputed(view, slice(None))}
        if reading.return_std:
            layers[f"{key_added}{STD_SUFFIX}"] = completed.std
        # A standard deviation of an earlier completion would not be of these values.
        for name in _layer_names(key_added):
            adata.layers.pop(name, None)
        adata.layers.update(layers)
        adata.uns[key_added] = self._provenance(reading)

    def add_completed_table(
        self, sdata: SpatialData, *, table_key: str = "table", key_added: str = Keys.LAYER, **options: Any
    ) -> None:
        """Write the completed expression to a table of a SpatialData object, and to its zarr store if it has one.

        The layers are those of :meth:`add_completed_layer`. Rows of the table that are not in the AnnData of the model
        (other regions) get NaN. On disk, only layers and provenance are added to the table, at the spots and genes with the same names;
        an interruption or a full disk leaves it as it was.

        Parameters
        ----------
        sdata
            Object with the table registered by :meth:`setup_spatialdata`; changed in place.
        table_key
            Name of the table.
        key_added
            Name of the layer.
        **options
            Options of :meth:`add_completed_layer`.

        Raises
        ------
        ValueError
            If the table is not that of the model, or that on disk lacks spots or genes of it or has other data of the name; also as
            :meth:`add_completed_layer`.
        KeyError
            If there is no such table.
        RuntimeError, TypeError, FloatingPointError, MemoryError
            As :meth:`add_completed_layer`.

        Examples
        --------
        >>> table = lgdist_scvi.LGDiST.setup_spatialdata(sdata, layer="counts")
        >>> model = lgdist_scvi.LGDiST(table)
        >>> model.train()
        >>> model.add_completed_table(sdata)
        >>> "lgdist" in sdata.tables["table"].layers
        True
        """
        table, _, _ = annotating_table(sdata, table_key)
        rows = table.obs_names.get_indexer(self.adata.obs_names)
        if (rows < 0).any() or not table.var_names.equals(self.adata.var_names):
            raise ValueError(
                f"sdata.tables[{table_key!r}] has not the spots and genes of the model's AnnData; add the registered "
                "table to the object, or correct table_key=..."
            )
        what = f"sdata.tables[{table_key!r}]"
        check_key(table.layers, table.uns, key_added, what)
        if (stored := stored_table(sdata, table_key)) is not None:
            check_key(stored.layers, stored.uns, key_added, what, f" in the store {sdata.path}")
        self.add_completed_layer(key_added=key_added, **options)
        names = _layer_names(key_added)
        if table is not self.adata:
            put_into_table(table, self.adata, rows, names, key_added)
        if stored is not None:
            write_layers(sdata, stored, table, names, key_added)

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
        """Write `adata` with its completed expression to disk, in bounded memory.

        The result is that of :meth:`add_completed_layer` followed by ``adata.write_h5ad`` or ``adata.write_zarr``, but the
        completed layers are never in memory as a whole, and `adata` is not changed. If it is too large for
        :func:`anndata.read_h5ad`, read it with :func:`anndata.experimental.read_lazy`.

        Blocks of spots are kept in the folder ``path + ".partial"`` until all are complete, so that an interrupted call can
        be repeated and continues where it stopped. If PyTorch's distributed package is initialised, the processes share
        the blocks, and the first process writes the file.

        Parameters
        ----------
        path
            File to write, ``.h5ad``, or folder, ``.zarr``.
        adata
            Spots to complete; by default those of the model.
        key_added
            Name of the layer, as in :meth:`add_completed_layer`.
        overwrite
            Replace an existing `path`, once the new file is complete.
        silent
            Show no progress bar.
        **options
            Options of :meth:`get_completed_expression`, but for `indices`, `gene_list` and `return_numpy`.

        Raises
        ------
        MemoryError
            If `n_samples` codes of a minibatch would take more than half of the available memory.
        FileExistsError
            If `path` exists, or with `overwrite` is something else than what is to be written.
        FileNotFoundError
            If the folder of `path` does not exist.
        OSError
            If the disk is full; complete blocks are kept.
        ValueError
            If `path` has another suffix, an option or `adata` does not fit, the stored blocks are of another model, other
            data or other options, or their folder is not of this function.
        RuntimeError
            If another process writes the same path; also as :meth:`get_completed_expression`.
        KeyError, TypeError, FloatingPointError
            As :meth:`get_completed_expression`.

        Examples
        --------
        >>> import anndata
        >>> model.write_completed("completed.h5ad")
        >>> "lgdist" in anndata.read_h5ad("completed.h5ad").layers
        True
        """
        check_path(path=path)
        path = Path(path)
        if path.suffix not in (".h5ad", ".zarr"):
            raise ValueError(f"The name of the file must end in .h5ad or .zarr, got {path.name!r}.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"The folder {path.parent} does not exist; create it first.")
        check_replaceable(path, overwrite=overwrite)
        reading = self._reading(**options)
        adata, view = self._trained_view(adata, diffusion=reading.n_samples > 0, use_image=reading.use_image)
        check_key(adata.layers, adata.uns, key_added)
        job = {**asdict(reading), **self._provenance(reading), "weights": self._weights_hash(), "data": view.digest()}
        batches = partial(Reader(self.module, view, reading).batches, silent=silent)
        folder = path.with_name(f"{path.name}.partial")
        try:
            with first_writer(path.with_name(f".{path.name}.lock"), path):
                blocks = Blocks(folder, view, reading.batch_size, job)
                if fill(blocks, batches, return_std=reading.return_std):
                    layers = {key_added: blocks.layer(0), f"{key_added}{IMPUTED_SUFFIX}": blocks.imputed()}
                    if reading.return_std:
                        layers[f"{key_added}{STD_SUFFIX}"] = blocks.layer(1)
                    written, uns = blocks.folder / path.name, {key_added: self._provenance(reading)}
                    write_extended(adata, layers, uns, written, _layer_names(key_added))
                    # Another may have come meanwhile.
                    check_replaceable(path, overwrite=overwrite)
                    blocks.finish(written, path)
        except (OSError, RuntimeError) as error:
            note = f"Complete blocks are kept in {folder}; repeat the call to continue."
            if isinstance(error, OSError):
                error.add_note(note)
            elif is_of_disk(error):
                raise OSError(f"{path} could not be written: {error} {note}") from error
            raise

    def _provenance(self, reading: Reading) -> dict[str, Any]:
        options = {name: value for name, value in asdict(reading).items() if name not in _TECHNICAL}
        setup = self.adata_manager.registry["setup_args"]
        registered = {name: setup[name] for name in _REGISTERED if setup[name] is not None}
        of_package = {"package": PACKAGE, "version": version(PACKAGE), "registered": registered}
        return {"model": type(self).__name__, **of_package, **options}

    def _weights_hash(self) -> str:
        return hash_of(self.module.state_dict())


def _layer_names(key: str) -> list[str]:
    """Names of all layers of a completion."""
    return [key, f"{key}{IMPUTED_SUFFIX}", f"{key}{STD_SUFFIX}"]


def check_key(layers: Container[str], uns: Mapping[str, Any], key: str, what: str = "adata", where: str = "") -> None:
    """Refuse a name that other data has."""
    check_name(key_added=key)
    known = uns.get(key)
    if isinstance(known, Mapping) and known.get("package") == PACKAGE:
        return
    taken = [f"layers[{name!r}]" for name in _layer_names(key) if name in layers] + [f"uns[{key!r}]"] * (key in uns)
    if taken:
        raise ValueError(
            f"{what} has {' and '.join(taken)}{where} already, not written by a completion; pass another key_added=... than "
            f"{key!r}."
        )
