"""Saving, and loading of which nothing is executed."""

from __future__ import annotations

import inspect
import os
import pickle
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

from lgdist_scvi._constants import PACKAGE

from ._base import LGDiSTBase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from anndata import AnnData

_VERSION = "lgdist_scvi_version"
# What scvi-tools writes beside tensors: names of genes and categories, and dictionaries. None of it acts when it is read.
_HARMLESS: list[Any] = [
    dict,
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
        """Save the model as weights and plain metadata, which :meth:`load` and scvi-tools read.

        Parameters
        ----------
        dir_path
            Folder to write.
        prefix
            Start of the names of the files.
        overwrite
            Write into a folder that exists.
        save_anndata
            Also save the spots. The file of the model holds none of their counts.
        **kwargs
            For scvi-tools.

        Raises
        ------
        FileExistsError
            If there is something at `dir_path` already.
        OSError
            If the folder cannot be written to; a model that is there stays as it is.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists; choose another name or pass overwrite=True.")
        registry = self.registry_
        # scvi-tools keeps a defaultdict here, which PyTorch's safe loading refuses.
        fields = dict(registry["field_registries"])
        try:
            self.registry_ = {**registry, "field_registries": fields, _VERSION: version(PACKAGE)}
            folder.mkdir(parents=True, exist_ok=True)
            # Beside what is there, so that an earlier model stays whole until the new one is.
            with tempfile.TemporaryDirectory(prefix=".saving_", dir=folder) as scratch:
                super().save(scratch, prefix, True, save_anndata, **kwargs)
                for file in Path(scratch).iterdir():
                    os.replace(file, folder / file.name)
        finally:
            self.registry_ = registry

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | None = None, *, prefix: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a saved model; the file is read as weights and plain metadata only, whoever it is from.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` has written.
        adata
            Spots to use the model with, of the genes of its training; by default those that were saved with it.
        prefix
            Start of the names of the files, as given to :meth:`save`.
        **kwargs
            ``accelerator`` and ``device``, where to put the model, and whatever else scvi-tools' ``load`` takes.

        Returns
        -------
        The model, as it was saved.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        OSError
            If the spots that were saved with it cannot be read.
        ValueError
            If the file is damaged, holds more than weights and plain metadata (which is then not executed), is of another
            model, or of a version that this one cannot read; or if `adata` does not fit the model.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> model = lgdist_scvi.LGDiST.load("model", adata=adata)
        """
        path = Path(dir_path) / f"{prefix or ''}model.pt"
        if not path.is_file() and "backup_url" not in kwargs:
            raise FileNotFoundError(
                f"There is no saved model at {path}; name the folder that model.save() has written."
            )
        with _weights_and_plain_metadata():
            if path.is_file():
                _check(path, cls)
            try:
                return super().load(str(dir_path), adata, prefix=prefix, **kwargs)
            except OSError as error:
                raise OSError(f"The spots saved with {path} cannot be read: {error}. Pass adata=...") from error
            except RuntimeError as error:
                if "loading state_dict" not in str(error):
                    raise
                raise ValueError(
                    f"{path} holds weights of another form than this version of {PACKAGE}: {error}"
                ) from error


def _check(path: Path, cls: Any) -> None:
    """Refuse what is not a saved model, or one with options that this version does not know."""
    try:
        content = torch.load(path, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights and plain metadata, so it was not written by LGDiST.save(), or was tampered "
            f"with. Nothing of it was executed. PyTorch says: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # damaged bytes can mean anything to the reader
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
    """Let ``torch.load`` execute nothing, also where it is called without that restriction, as scvi-tools does."""
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        with torch.serialization.safe_globals(_HARMLESS):
            yield
