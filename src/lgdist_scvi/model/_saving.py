"""Saving, and loading that never executes code."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import torch

from lgdist_scvi._checks import check_name, check_path
from lgdist_scvi._compat import REGISTRATION_KEY, download, training_devices
from lgdist_scvi._constants import PACKAGE
from lgdist_scvi._exclusive import sole_writer
from lgdist_scvi._output import is_of_disk
from lgdist_scvi._quiet import quiet
from lgdist_scvi.data._fields import GroupField
from lgdist_scvi.module._use import Steady, refuse_while_trained

from ._base import LGDiSTBase
from ._manifest import MANIFEST, hash_of_data, hash_of_file, manifest_of
from ._model_file import VERSION, read_model_file, safely_loaded, weights_of

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData


MODEL_FILE = "model.pt"


class SavingMixin(LGDiSTBase):
    """Saving and safe loading."""

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model as weights and plain metadata, readable by :meth:`load` and by scvi-tools.

        Parameters
        ----------
        dir_path
            Folder to write.
        prefix
            Prefix of the file names.
        overwrite
            Write into an existing folder.
        save_anndata
            Also save the AnnData. The model file itself contains no counts.
        **kwargs
            Further arguments of scvi-tools.

        Raises
        ------
        FileExistsError
            If `dir_path` exists.
        OSError
            If the folder is not writable, or the disk is full; an existing model is not changed.
        RuntimeError
            If another process or thread saves to the same folder, or trains the model.
        KeyError, TypeError, ValueError
            If an option is more than text, numbers and lists of them, or the AnnData to be saved is no longer as it was registered, so that
            :meth:`load` could not read it; an existing model is not changed.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        """
        check_path(dir_path=dir_path)
        _check_prefix(prefix)
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists; choose another name or pass overwrite=True.")
        refuse_while_trained(self.module)
        steady = Steady(self.module)
        name = f"{prefix or ''}{MODEL_FILE}"
        data = self._hash_of_data(required=save_anndata)
        registry = self.registry_
        # scvi-tools keeps a defaultdict here, which PyTorch's safe loading refuses.
        fields = {
            name: {**field, "state_registry": GroupField.saved(field["state_registry"])}
            for name, field in registry["field_registries"].items()
        }
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Written to a scratch folder, so that an earlier model stays intact until the new one is complete.
            with (
                sole_writer(folder / ".saving.lock", folder),
                tempfile.TemporaryDirectory(prefix=".saving_", dir=folder) as scratch,
            ):
                try:
                    self.registry_ = {**registry, "field_registries": fields, VERSION: version(PACKAGE)}
                    super().save(scratch, prefix, True, save_anndata, **kwargs)
                finally:
                    self.registry_ = registry
                steady.check()
                _seal(Path(scratch, name), data, _spots_beside(Path(scratch, name), prefix))
                # The model last: what is beside it is told by its manifest.
                for file in sorted(os.listdir(scratch), key=name.__eq__):
                    os.replace(Path(scratch, file), folder / file)
                new = False
        except (OSError, RuntimeError) as error:
            if not is_of_disk(error):
                raise
            raise OSError(
                f"The model could not be saved in {folder} ({error}); free space there, or choose another folder. What was "
                "there is unchanged."
            ) from error
        finally:
            if new:
                with suppress(OSError):
                    folder.rmdir()

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        *,
        prefix: str | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        backup_url: str | None = None,
    ) -> Self:
        """Load a saved model; the file is read as weights and plain metadata only, and its code never runs.

        Parameters
        ----------
        dir_path
            Folder written by :meth:`save`.
        adata
            Spots with the genes of the model; by default those saved with it.
        prefix
            Prefix of the file names, as passed to :meth:`save`.
        accelerator, device
            Hardware to use, as in the ``load`` method of scvi-tools.
        backup_url
            Where to download the model from if it is not in the folder.

        Returns
        -------
        The saved model.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        OSError
            If the spots saved with it cannot be read.
        KeyError, TypeError, ValueError
            If the file is damaged or was changed, holds more than weights and plain metadata (its code is not executed), is of another
            model or of an unsupported version, if the file of the spots beside it was damaged or changed or is that of another model, or if `adata` does not fit the model.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> model = lgdist_scvi.LGDiST.load("model", adata=adata)
        """
        path = _model_path(dir_path, prefix, backup_url)
        with quiet():
            content = read_model_file(path, cls)
            attributes = dict(content["attr_dict"])
            registry, arguments = attributes.pop("registry_"), attributes.pop("init_params_")
            if adata is None:
                adata = _spots_of(path, prefix, registry["setup_args"], content.get(MANIFEST, {}))
                # The name of their registration in scvi-tools: spots read twice, by threads at once, would share it.
                adata.uns.pop(REGISTRATION_KEY, None)
            cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
            model = cls(adata, **arguments["non_kwargs"], **arguments["kwargs"].get("module_kwargs", {}))
            for name, value in attributes.items():
                setattr(model, name, value)
            model.module.load_state_dict(weights_of(content))
            model.to_device(training_devices(accelerator, device)[0])
            model.module.eval()
            model._validate_anndata(adata)
        return model

    @classmethod
    def load_registry(cls, dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """Registry of a saved model, read as safely as :meth:`load` does.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.

        Returns
        -------
        The registry of scvi-tools.

        Raises
        ------
        FileNotFoundError, TypeError, ValueError
            As :meth:`load`.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> lgdist_scvi.LGDiST.load_registry("model")["model_name"]
        'LGDiST'
        """
        return read_model_file(_model_path(dir_path, prefix), cls)["attr_dict"]["registry_"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, and copied, as :meth:`save` writes it; its AnnData beside it. As with any pickle, reading it runs its code."""
        self._hash_of_data(required=True)
        with tempfile.TemporaryDirectory(prefix="lgdist_") as folder:
            self.save(folder, overwrite=True)
            content = Path(folder, MODEL_FILE).read_bytes()
        return _unpickled, (type(self), content, self.adata)

    def _hash_of_data(self, *, required: bool) -> str | None:
        """Hash of the AnnData of the model; None if it is no longer as it was registered and need not be."""
        try:
            return hash_of_data(self.adata, self.adata_manager.registry["setup_args"])
        except (KeyError, TypeError, ValueError) as error:
            if not required:
                return None
            raise ValueError(
                f"model.adata has changed since it was registered, so that load() would refuse it: {error.args[0]} Save the model "
                "without it (save_anndata=False), or put back what is missing."
            ) from error


def _model_path(dir_path: str | Path, prefix: str | None, backup_url: str | None = None) -> Path:
    check_path(dir_path=dir_path)
    _check_prefix(prefix)
    path = Path(dir_path) / f"{prefix or ''}{MODEL_FILE}"
    if backup_url is not None and not path.exists():
        download(backup_url, str(path.parent), path.name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no saved model at {path}; name the folder written by model.save().")
    return path


def _check_prefix(prefix: str | None) -> None:
    if prefix:
        check_name(prefix=prefix)


def _unpickled(cls: type[SavingMixin], content: bytes, adata: AnnData) -> SavingMixin:
    """The model of a pickle, on the first device that there is."""
    with tempfile.TemporaryDirectory(prefix="lgdist_") as folder:
        Path(folder, MODEL_FILE).write_bytes(content)
        return cls.load(folder, adata=adata)


def _spots_beside(path: Path, prefix: str | None) -> Path:
    """Where scvi-tools writes the spots that are saved with a model."""
    return path.with_name(f"{prefix or ''}adata.h5ad")


def _spots_of(path: Path, prefix: str | None, setup: dict[str, Any], manifest: dict[str, Any]) -> AnnData:
    """The spots that were saved with a model."""
    spots, data, file = _spots_beside(path, prefix), manifest.get("data"), manifest.get("file")
    if not spots.exists():
        raise ValueError(
            f"There are no spots beside the model {path}; pass adata=..., or save it with save_anndata=True."
        )
    try:
        # Before anything reads what is in it: with some damaged files HDF5 never comes to an end.
        untouched = file is None or file == hash_of_file(spots)
        adata = anndata.read_h5ad(spots) if untouched else None
    except Exception as error:  # damaged bytes can raise any error
        raise OSError(f"The spots saved with {path} cannot be read: {error}. Pass adata=...") from error
    if adata is None:
        raise ValueError(
            f"{spots} is not as the model beside it was saved with: it was damaged or changed since, or is that of another model. "
            "If you changed it, read it with anndata.read_h5ad and pass it as adata=..."
        )
    try:
        # The hash of the file says as much.
        same = file is not None or data is None or hash_of_data(adata, setup) == data
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"{spots} does not hold the spots that the model beside it was saved with: names, counts, positions or images "
            "differ. Pass adata=... if they are to be used."
        )
    return adata


def _seal(path: Path, data: str | None, spots: Path) -> None:
    """Add the manifest to the file of a model, and refuse what :meth:`SavingMixin.load` would refuse."""
    try:
        content = safely_loaded(path)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            "The model cannot be saved, because load() would refuse it: an option of the model or of its setup is a "
            f"{culprit[1] if culprit else error}. Pass text, numbers, or lists of them instead."
        ) from error
    torch.save({**content, MANIFEST: manifest_of(content, data, spots)}, path)
