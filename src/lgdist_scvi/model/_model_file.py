"""The file of a model: read without running code, and checked before a model is made of it."""

from __future__ import annotations

import inspect
import pickle
import re
import threading
import zipfile
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgdist_scvi._constants import PACKAGE, REGISTRY_KEYS

from ._manifest import changed_parts

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "lgdist_scvi_version"
"""Key of the version in the registry."""
# What scvi-tools stores beside tensors: names of genes and categories, and dictionaries. Reading these runs no code.
_HARMLESS: list[Any] = [
    dict,
    bytes,  # of arrays without entries
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(value.__reduce__()[0] for value in (np.empty(0), np.float64(0))),
]
# PyTorch has one list of what is harmless for all threads.
_READING = threading.Lock()
# Those without which no model can be made, and the kinds that these and others must be of.
_NEEDED = ("registry_", "init_params_")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "registry_": dict,
    "init_params_": dict,
    "history_": dict,
    "zeros_missing_": bool,
    "n_rounds_": int,
    "seed_": int,
    "held_out_": (int, float),
    "trained_digest_": str,
    "trained_spots_": np.ndarray,
    "trained_entries_": np.ndarray,
}


def safely_loaded(path: Path) -> Any:
    """What a file holds, if that is only weights and plain metadata.

    Raises
    ------
    pickle.UnpicklingError
        If it holds more; nothing of it is executed.
    """
    with _READING, torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_model_file(path: Path, cls: Any) -> dict[str, Any]:
    """Read the file of a model, and check that a model of a class can be made of it.

    Raises
    ------
    ValueError
        If the file is damaged, holds more than weights and plain metadata, or is of another class or version.
    """
    content = _read(path)
    _check_structure(path, content)
    _check_version(path, content["attr_dict"], cls)
    _check_shapes(path, content, cls)
    return content


def weights_of(content: dict[str, Any]) -> dict[str, Any]:
    """Weights in a model file, without the store of Pyro that scvi-tools puts beside them."""
    return {name: value for name, value in content["model_state_dict"].items() if name != "pyro_param_store"}


def _read(path: Path) -> Any:
    try:
        # PyTorch does not look at the checksums.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if (broken := parts.testzip()) is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {broken}")
        return safely_loaded(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights and plain metadata: it was not written by LGDiST.save(), or it was modified. "
            f"Nothing of it was executed. PyTorch found: {_found(error)}."
        ) from error
    except Exception as error:  # damaged bytes can raise any error
        raise ValueError(
            f"{path} is damaged or not a saved model ({type(error).__name__} {error}); save it again, or use a copy."
        ) from error


def _found(error: pickle.UnpicklingError) -> str:
    """What PyTorch refuses in a file, without its advice to read the file unsafely."""
    text = " ".join(str(error).split())
    return re.split(r"\.? (?:Please|Check the documentation)", text.rpartition("WeightsUnpickler error: ")[2])[0]


def _check_structure(path: Path, content: Any) -> None:
    """Refuse what is not a saved model, or is no longer what was saved."""
    if not isinstance(content, dict) or not {"model_state_dict", "var_names", "attr_dict"} <= set(content):
        raise ValueError(f"{path} is not a saved model of scvi-tools.")
    if changed := changed_parts(content):
        raise ValueError(
            f"{path} is damaged, or was changed after it was saved: its {' and '.join(changed)} are not those that were saved. "
            "Save the model again, or use a copy."
        )
    weights, attributes = content["model_state_dict"], content["attr_dict"]
    wrong = [name for name, value in (("weights", weights), ("settings", attributes)) if not isinstance(value, dict)]
    if not wrong:
        wrong = [name for name in _NEEDED if name not in attributes]
        wrong += [
            name for name, kind in _KINDS.items() if name in attributes and not isinstance(attributes[name], kind)
        ]
        wrong += [str(name) for name, value in weights_of(content).items() if not isinstance(value, torch.Tensor)]
    if not wrong:
        registry, arguments = attributes["registry_"], attributes["init_params_"]
        wrong += [name for name in ("setup_args", "field_registries") if not isinstance(registry.get(name), dict)]
        wrong += [name for name in ("non_kwargs", "kwargs") if not isinstance(arguments.get(name), dict)]
    if not wrong and not _same_names(content["var_names"], registry["field_registries"]):
        wrong = ["names of the genes"]
    if wrong:
        raise ValueError(
            f"{path} is damaged: {', '.join(wrong[:5])} {'is' if len(wrong) == 1 else 'are'} missing or not as a model has "
            "them. Save the model again, or use a copy."
        )


def _same_names(names: Any, fields: dict[str, Any]) -> bool:
    field = fields.get(REGISTRY_KEYS.X)
    state = field.get("state_registry") if isinstance(field, dict) else None
    registered = state.get("column_names") if isinstance(state, dict) else None
    return registered is not None and [str(name) for name in np.ravel(names)] == [str(name) for name in registered]


def _check_version(path: Path, attributes: dict[str, Any], cls: Any) -> None:
    """Refuse models of another class, or with options that this version does not have."""
    registry, arguments = attributes["registry_"], attributes["init_params_"]
    if (name := registry.get("model_name")) != cls.__name__:
        raise ValueError(f"{path} holds a model of the class {name}, not {cls.__name__}; load it with its own class.")
    given = {
        cls.setup_anndata: registry["setup_args"],
        cls.__init__: arguments["non_kwargs"],
        cls._module_cls: arguments["kwargs"].get("module_kwargs", {}),
    }
    unknown = [
        name for known, names in given.items() for name in names if name not in inspect.signature(known).parameters
    ]
    if unknown:
        raise ValueError(
            f"{path} was saved by {PACKAGE} {registry.get(VERSION, '(version unknown)')}, with options that {version(PACKAGE)} "
            f"does not have: {', '.join(unknown)}. Install the version that saved it, or a newer one."
        )


def _check_shapes(path: Path, content: dict[str, Any], cls: Any) -> None:
    """Refuse weights that the module would not have, before memory is asked for that only a damaged option needs."""
    attributes = content["attr_dict"]
    fields, options = attributes["registry_"]["field_registries"], attributes["init_params_"]["kwargs"]
    image = fields.get(REGISTRY_KEYS.IMAGE, {}).get("summary_stats", {})
    try:
        with torch.device("meta"):
            module = cls._module_cls(
                n_genes=len(content["var_names"]),
                n_image=image.get(f"n_{REGISTRY_KEYS.IMAGE}", 0),
                **options.get("module_kwargs", {}),
            )
        expected = {name: weight.shape for name, weight in module.state_dict().items()}
    except Exception as error:  # damaged options can raise any error
        raise ValueError(
            f"{path} is damaged: no model can be made of its options ({type(error).__name__}: {error}). Save the model again, "
            "or use a copy."
        ) from error
    found = {name: weight.shape for name, weight in weights_of(content).items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} holds weights that do not fit this version of {PACKAGE}: {len(wrong)} have another shape or are missing or "
            f"unknown, first {name!r} ({found.get(name, 'missing')} instead of {expected.get(name, 'none')}). Install the "
            "version that saved it, or use a copy."
        )
