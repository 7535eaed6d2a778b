"""Saving, and loading of which nothing is executed."""

from __future__ import annotations

import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from anndata import AnnData

# What scvi-tools writes beside tensors: names of genes and categories, and dictionaries. None of it acts when it is read.
_HARMLESS: list[Any] = [
    dict,
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(value.__reduce__()[0] for value in (np.empty(0), np.float64(0))),
]


class SavingMixin:
    """Saving and safe loading."""

    registry_: dict[str, Any]

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
        """
        registry = self.registry_
        # scvi-tools keeps a defaultdict here, which PyTorch's safe loading refuses.
        fields = dict(registry["field_registries"])
        try:
            self.registry_ = {**registry, "field_registries": fields}
            super().save(str(dir_path), prefix, overwrite, save_anndata, **kwargs)  # type: ignore[misc]
        finally:
            self.registry_ = registry

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | bool | None = None, *, prefix: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a saved model; the file is read as weights and plain metadata only, whoever it is from.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` has written.
        adata
            Spots to use the model with, of the genes of its training; by default those that were saved with it.
            ``False`` loads the model without any.
        prefix
            Start of the names of the files, as given to :meth:`save`.
        **kwargs
            ``accelerator`` and ``device``, where to put the model, and whatever else scvi-tools' ``load`` takes.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        ValueError
            If the file is damaged, holds more than weights and plain metadata (which is then not executed), or is of
            another model; or if `adata` does not fit the model.
        """
        path = Path(dir_path) / f"{prefix or ''}model.pt"
        if not path.is_file() and "backup_url" not in kwargs:
            raise FileNotFoundError(
                f"There is no saved model at {path}; name the folder that model.save() has written."
            )
        with _weights_and_plain_metadata():
            if path.is_file():
                _check(path)
            return super().load(str(dir_path), adata, prefix=prefix, **kwargs)  # type: ignore[misc]


def _check(path: Path) -> None:
    """Refuse what is not a saved model."""
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


@contextmanager
def _weights_and_plain_metadata() -> Iterator[None]:
    """Let ``torch.load`` execute nothing, also where it is called without that restriction, as scvi-tools does."""
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        with torch.serialization.safe_globals(_HARMLESS):
            yield
