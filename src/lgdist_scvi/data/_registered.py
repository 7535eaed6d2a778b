"""What was registered, known again by hashes, so that later changes of it are found."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scvi.data import AnnDataManager

from lgdist_scvi._compat import MANAGER_UUID_KEY
from lgdist_scvi._constants import REGISTRY_KEYS

from ._entries import BLOCK_ENTRIES
from ._graph_field import SpatialGraphField
from ._neighbors import graph_edges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    from anndata import AnnData
    from numpy.typing import DTypeLike, NDArray

    Digests: TypeAlias = dict[str, str]

_ABSENT, _UNREADABLE = "absent", "unreadable"


def digest_arrays(arrays: Iterable[NDArray], *of: Any) -> str:
    """Hash of arrays and of further values that have a unique text."""
    digest = hashlib.sha256(repr(of).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class RegisteredManager(AnnDataManager):
    """Manager of scvi-tools that knows whether what it registered has changed since.

    It guards spots, positions, libraries, batches, depths, image embeddings and the graph. Counts are checked at every use.
    """

    adata: Any

    def register_fields(self, adata: AnnData, source_registry: dict | None = None, **transfer_kwargs: Any) -> None:
        """Register the fields, and remember what was registered; arguments as in scvi-tools."""
        super().register_fields(adata, source_registry, **transfer_kwargs)
        self._names = _digest_names(adata)
        self._digests = {**self._digest_data(), **self._digest_graph()}

    def validate(self) -> None:
        """Register again if another manager has registered this AnnData since, or ``uns`` was lost."""
        self.adata.uns.setdefault(MANAGER_UUID_KEY, "")
        with self._kept_adata():
            super().validate()

    @property
    def has_other_spots(self) -> bool:
        """Whether spots were dropped or renamed since."""
        return _digest_names(self.adata) != self._names

    def changes(self) -> list[str]:
        """Name what has changed, such as ``adata.obsm['spatial'] has changed``; empty if nothing has.

        A graph that was built is built again if another registration has replaced it.
        """
        before = self._digests
        changed = _differing(before, self._digest_data())
        if not changed:
            self.validate()
            changed = _differing(before, self._digest_graph())
            self._digests = before
        return changed

    def renew(self) -> None:
        """Register what is there now. A graph of other spots is kept where it fits, such as after spots were dropped."""
        graph = self.get_state_registry(REGISTRY_KEYS.GRAPH)
        if graph[SpatialGraphField.BUILT_KEY] and not self.has_other_spots:
            self.adata.obsp.pop(graph[SpatialGraphField.CONNECTIVITIES_KEY], None)
        with self._kept_adata() as adata:
            self.adata = None
            self.register_fields(adata, deepcopy(self.registry))

    @contextmanager
    def _kept_adata(self) -> Iterator[AnnData]:
        """Keep the AnnData where a registration fails; scvi-tools would lose it."""
        adata = self.adata
        try:
            yield adata
        finally:
            self.adata = adata

    def _digest_data(self) -> Digests:
        adata, setup = self.adata, self.registry["setup_args"]
        digests = {}
        for key, dtype in {setup["spatial_key"]: np.float64, setup["image_key"]: np.float32}.items():
            if key is not None:
                digests[f"adata.obsm[{key!r}]"] = _digest_rows(adata.obsm.get(key), dtype)
        for key in (setup["library_key"], setup["batch_key"]):
            if key is not None:
                # Names of groups may change, since only the groups are used.
                groups = [pd.factorize(adata.obs[key])[0]] if key in adata.obs else None
                digests[f"adata.obs[{key!r}]"] = _ABSENT if groups is None else digest_arrays(groups)
        if (key := setup["size_factor_key"]) is not None:
            depth = pd.to_numeric(adata.obs[key], errors="coerce") if key in adata.obs else None
            digests[f"adata.obs[{key!r}]"] = (
                _ABSENT if depth is None else digest_arrays([depth.to_numpy(dtype=np.float64, na_value=np.nan)])
            )
        return digests

    def _digest_graph(self) -> Digests:
        state = self.get_state_registry(REGISTRY_KEYS.GRAPH)
        digests = {}
        for name in (SpatialGraphField.CONNECTIVITIES_KEY, SpatialGraphField.DISTANCES_KEY):
            graph = self.adata.obsp.get(state[name])
            digests[f"adata.obsp[{state[name]!r}]"] = _ABSENT if graph is None else digest_arrays(graph_edges(graph))
        return digests


def _digest_names(adata: AnnData) -> str:
    return digest_arrays([], *adata.obs_names)


def _digest_rows(stored: Any, dtype: DTypeLike) -> str:
    """Hash of a matrix as the numbers that are read from it, a block at a time."""
    if stored is None:
        return _ABSENT
    array = np.asarray(stored)
    if sparse.issparse(stored) or array.dtype.kind not in "buif" or array.ndim != 2:
        return _UNREADABLE
    step = max(1, BLOCK_ENTRIES // max(1, array.shape[1]))
    blocks = (array[start : start + step].astype(dtype, copy=False) for start in range(0, len(array), step))
    return digest_arrays(blocks, array.shape)


def _differing(before: Digests, now: Digests) -> list[str]:
    return [
        f"{name} is missing" if digest == _ABSENT else f"{name} has changed"
        for name, digest in now.items()
        if digest != before[name]
    ]
