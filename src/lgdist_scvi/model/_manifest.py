"""Hashes by which what was written is known again: weights, names and settings of a model, its data, and blocks of a completion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgdist_scvi.data._entries import count_matrix, observed_entries, observed_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

MANIFEST = "lgdist_scvi_manifest"
"""Key of the manifest in the file of a model, beside what scvi-tools writes."""
PARTS = {"weights": "model_state_dict", "names": "var_names", "settings": "attr_dict"}
"""What the manifest has hashes of, and where the file has it."""


def hash_of(value: Any) -> str:
    """Hash of tensors, arrays, text and numbers, and of dictionaries and lists of them."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def manifest_of(content: dict[str, Any], data: str | None, spots: Path) -> dict[str, str | None]:
    """Hashes of the parts of a model file, of the data that it was saved with, and of the file of these if there is one."""
    parts = {name: hash_of(content[part]) for name, part in PARTS.items()}
    return {**parts, "data": data, "file": hash_of_file(spots) if spots.exists() else None}


def hash_of_file(path: Path) -> str:
    """Hash of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_parts(content: dict[str, Any]) -> list[str]:
    """Parts of a model file that are not as they were saved; none can be told for a file without a manifest."""
    known = content.get(MANIFEST)
    if not isinstance(known, dict):
        return []
    return [name for name, part in PARTS.items() if known.get(name) != hash_of(content[part])]


def hash_of_data(adata: AnnData, setup: dict[str, Any]) -> str:
    """Hash of the registered data: names, counts, positions, groups, depths and images of the spots.

    Parameters
    ----------
    adata
        Annotated spots.
    setup
        Arguments of the setup.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the AnnData no longer has what was registered.
    """
    counts, _ = count_matrix(adata, setup["layer"])
    parts: list[Any] = [[str(name) for name in names] for names in (adata.obs_names, adata.var_names)]
    # One hash for each block, because all entries together may be more than the memory holds.
    observed = observed_matrix(adata, setup["observed_layer"])
    for row, column, value in observed_entries(counts, observed):
        parts.append(hash_of([row.astype(np.int64), column.astype(np.int64), value.astype(np.float64)]))
    parts += [
        np.asarray(adata.obsm[key], dtype=np.float64)
        for key in (setup["spatial_key"], setup["image_key"])
        if key is not None
    ]
    for key in (setup["library_key"], setup["batch_key"], setup["size_factor_key"]):
        if key is not None:
            parts.append([str(value) for value in adata.obs[key]])
    return hash_of(parts)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, Mapping):
        value = [[key, item] for key, item in value.items()]
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape}:".encode())
        # Times and durations have no buffer.
        digest.update(value.tobytes() if value.dtype.kind in "mM" else np.ascontiguousarray(value).data)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}:".encode())
        for item in value:
            _feed(digest, item)
    else:
        value = value.item() if isinstance(value, np.generic) else value
        digest.update(f"{type(value).__name__} {value!r};".encode())
