"""Saving, and loading that never executes code."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import tempfile
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgdist_scvi._constants import PACKAGE
from lgdist_scvi._quiet import quiet
from lgdist_scvi.data._fields import GroupField

from ._base import LGDiSTBase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from anndata import AnnData

_VERSION = "lgdist_scvi_version"
# PyTorch's environment variables.
_RESTRICTED, _UNRESTRICTED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# What scvi-tools stores beside tensors: names of genes and categories, and dictionaries. Reading these runs no code.
_HARMLESS: list[Any] = [
    dict,
    bytes,  # of arrays without entries
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(value.__reduce__()[0] for value in (np.empty(0), np.float64(0))),
]


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
            If the folder is not writable; an existing model is not changed.
        ValueError
            If an option is more than text, numbers and lists of them, so that :meth:`load` could not read it; an existing model is not
            changed.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists; choose another name or pass overwrite=True.")
        registry = self.registry_
        # scvi-tools keeps a defaultdict here, which PyTorch's safe loading refuses.
        fields = {
            name: {**field, "state_registry": GroupField.saved(field["state_registry"])}
            for name, field in registry["field_registries"].items()
        }
        new = not folder.exists()
        try:
            self.registry_ = {**registry, "field_registries": fields, _VERSION: version(PACKAGE)}
            folder.mkdir(parents=True, exist_ok=True)
            # Written to a scratch folder, so that an earlier model stays intact until the new one is complete.
            with tempfile.TemporaryDirectory(prefix=".saving_", dir=folder) as scratch:
                super().save(scratch, prefix, True, save_anndata, **kwargs)
                _require_loadable(Path(scratch, f"{prefix or ''}model.pt"))
                for file in Path(scratch).iterdir():
                    os.replace(file, folder / file.name)
                new = False
        finally:
            self.registry_ = registry
            if new:
                with suppress(OSError):
                    folder.rmdir()

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | None = None, *, prefix: str | None = None, **kwargs: Any
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
        **kwargs
            ``accelerator`` and ``device``, and further arguments of the ``load`` method of scvi-tools.

        Returns
        -------
        The saved model.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        OSError
            If the spots saved with it cannot be read.
        ValueError
            If the file is damaged, holds more than weights and plain metadata (its code is not executed), is of another model
            or of an unsupported version, or if `adata` does not fit the model.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> model = lgdist_scvi.LGDiST.load("model", adata=adata)
        """
        path = Path(dir_path) / f"{prefix or ''}model.pt"
        if not path.is_file() and "backup_url" not in kwargs:
            raise FileNotFoundError(f"There is no saved model at {path}; name the folder written by model.save().")
        with quiet(), _weights_and_plain_metadata():
            if path.is_file():
                _check(path, cls)
            try:
                return super().load(str(dir_path), adata, prefix=prefix, **kwargs)
            except OSError as error:
                raise OSError(f"The spots saved with {path} cannot be read: {error}. Pass adata=...") from error
            except RuntimeError as error:
                if "loading state_dict" not in str(error):
                    raise
                raise ValueError(f"{path} holds weights that do not fit this version of {PACKAGE}: {error}") from error


def _require_loadable(path: Path) -> None:
    """Refuse to save what :meth:`SavingMixin.load` would refuse."""
    try:
        with _weights_and_plain_metadata():
            torch.load(path, map_location="cpu")
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            "The model cannot be saved, because load() would refuse it: an option of the model or of its setup is a "
            f"{culprit[1] if culprit else error}. Pass text, numbers, or lists of them instead."
        ) from error


def _check(path: Path, cls: Any) -> None:
    """Refuse files that are not a saved model, or have options that this version does not know."""
    try:
        content = torch.load(path, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights and plain metadata: it was not written by LGDiST.save(), or it was modified. "
            f"Nothing of it was executed. PyTorch says: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # damaged bytes can raise any error
        raise ValueError(
            f"{path} is damaged or not a saved model. PyTorch says: {type(error).__name__} {error}"
        ) from error
    if not isinstance(content, dict) or not {"model_state_dict", "var_names", "attr_dict"} <= set(content):
        raise ValueError(f"{path} is not a saved model of scvi-tools.")
    attributes = content["attr_dict"]
    registry, arguments = attributes.get("registry_", {}), attributes.get("init_params_", {})
    if (name := registry.get("model_name")) != cls.__name__:
        raise ValueError(f"{path} holds a model of the class {name}, not {cls.__name__}; load it with its own class.")
    given = {
        cls.setup_anndata: registry.get("setup_args", {}),
        cls.__init__: arguments.get("non_kwargs", {}),
        cls._module_cls: arguments.get("kwargs", {}).get("module_kwargs", {}),
    }
    unknown = [
        name for known, names in given.items() for name in names if name not in inspect.signature(known).parameters
    ]
    if unknown:
        raise ValueError(
            f"{path} was saved by {PACKAGE} {registry.get(_VERSION, '(version unknown)')}, with options that {version(PACKAGE)} "
            f"does not have: {', '.join(unknown)}. Install the version that saved it, or a newer one."
        )


@contextmanager
def _weights_and_plain_metadata() -> Iterator[None]:
    """Keep ``torch.load`` from executing code, even if called without that restriction, as in scvi-tools."""
    before = {name: os.environ.pop(name, None) for name in (_RESTRICTED, _UNRESTRICTED)}
    os.environ[_RESTRICTED] = "1"
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            yield
    finally:
        del os.environ[_RESTRICTED]
        os.environ.update({name: value for name, value in before.items() if value is not None})
