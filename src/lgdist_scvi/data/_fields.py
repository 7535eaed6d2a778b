"""Fields of scvi-tools' AnnDataManager: groups, image embeddings, the spatial graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.table
from scvi.data.fields import BaseAnnDataField, CategoricalObsField, ObsmField

from lgdist_scvi._constants import REGISTRY_KEYS, Keys

from ._names import are_plain, check_sortable, names_of
from ._neighbors import add_spatial_graph, edge_lengths, graph_edges, graph_params, library_codes

if TYPE_CHECKING:
    from anndata import AnnData


class GroupField(CategoricalObsField):
    """Column of ``obs`` that groups spots; new data may have new groups, since nothing is learnt per group."""

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Register the groups of new data beside the known ones; arguments as in scvi-tools.

        Raises
        ------
        TypeError
            If the names of new and known groups cannot be sorted together.
        """
        key, known = self._original_attr_key, state_registry[self.CATEGORICAL_MAPPING_KEY]
        if not are_plain(names_of(adata_target.obs[key])):
            # Known ones are text if the model was saved.
            return self.register_field(adata_target)
        check_sortable(adata_target.obs[key], key, f"{self.registry_key}_key", known)
        return super().transfer_field(state_registry, adata_target, **{**kwargs, "extend_categories": True})

    @classmethod
    def saved(cls, state_registry: dict) -> dict[str, Any]:
        """The state as it is saved: names such as dates and intervals are written as text."""
        names = state_registry.get(cls.CATEGORICAL_MAPPING_KEY)
        if names is None or are_plain(names):
            return state_registry
        return {**state_registry, cls.CATEGORICAL_MAPPING_KEY: np.array([str(name) for name in names], dtype=object)}


class ImageField(ObsmField):
    """Image embeddings in ``obsm``, which must be computed in the same way for all data of a model."""

    MADE_KEY = "made"

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Register the embeddings and, if :func:`~lgdist_scvi.pp.image_embeddings` computed them, its settings."""
        return super().register_field(adata) | {self.MADE_KEY: _made(adata, self.attr_key)}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Check that the embeddings of new data were computed like those of the model; arguments as in scvi-tools.

        Raises
        ------
        ValueError
            If the number of features or the settings differ.
        """
        check_embeddings(adata_target, self.attr_key, state_registry)
        made = {self.MADE_KEY: state_registry[self.MADE_KEY]}
        return super().transfer_field(state_registry, adata_target, **kwargs) | made


def check_embeddings(adata: AnnData, key: str, state_registry: dict) -> None:
    """Check that image embeddings were computed like those that a model was trained with.

    Parameters
    ----------
    adata
        Annotated spots.
    key
        Key of the embeddings in ``obsm`` and of their settings in ``uns``.
    state_registry
        State of the model's :class:`ImageField`.

    Raises
    ------
    ValueError
        If the settings of both are known and differ.
    """
    expected, found = state_registry[ImageField.MADE_KEY], _made(adata, key)
    if expected and found and dict(expected) != found:
        raise ValueError(
            f"adata.obsm[{key!r}] was computed with {found}, but that of the model with {dict(expected)}; compute it in the "
            "same way with lgdist_scvi.pp.image_embeddings."
        )


def _made(adata: AnnData, key: str) -> dict[str, Any] | None:
    """Settings that determine the embeddings; None if the user computed them."""
    made, names = adata.uns.get(key), ("model", "patch_size", "unit", "n_pixels", "standardize")
    if not isinstance(made, Mapping) or not set(names) <= set(made):
        return None
    # Values read from a file are NumPy scalars.
    return {name: value.item() if isinstance(value := made[name], np.generic) else value for name in names}


class SpatialGraphField(BaseAnnDataField):
    """Registers the graph of spatial neighbours in ``obsp``.

    The graph takes part in setup, transfer and loading like every field, but is not listed in the data registry:
    otherwise a data loader would turn its rows into dense minibatches.

    Without `neighbors_key` the graph is built from the positions at every setup. On transfer (loading, or passing new
    sections, copies or subsets to a trained model) a graph that still fits the positions is kept, so that a subset
    keeps the edges among its spots; otherwise it is rebuilt. With `neighbors_key` the user's graph is checked and never
    changed.

    Parameters
    ----------
    spatial_key
        Key of the positions in ``obsm``.
    library_key
        Column of ``obs`` with the libraries; None for one library.
    neighbors_key
        Prefix of the user's graph, as in ``obsp[f"{neighbors_key}_connectivities"]``; None builds one.
    n_neighbors
        Neighbours per spot.
    max_distance
        Largest distance of neighbours of a graph that is built, in the unit of the positions.
    registry_key
        Key of the field in the registry.
    """

    CONNECTIVITIES_KEY = "connectivities_key"
    DISTANCES_KEY = "distances_key"
    N_NEIGHBORS_KEY = "n_neighbors"
    BUILT_KEY = "built"

    def __init__(
        self,
        spatial_key: str,
        library_key: str | None = None,
        neighbors_key: str | None = None,
        n_neighbors: int = 6,
        max_distance: float | None = None,
        registry_key: str = REGISTRY_KEYS.GRAPH,
    ) -> None:
        super().__init__()
        self._registry_key = registry_key
        self.spatial_key = spatial_key
        self.library_key = library_key
        self.neighbors_key = neighbors_key
        self.n_neighbors = int(n_neighbors)
        self.max_distance = max_distance

    @property
    def registry_key(self) -> str:
        """Key of the field in the registry."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Attribute of the AnnData that holds the graph."""
        return "obsp"

    @property
    def attr_key(self) -> str:
        """Key of the connectivities in ``obsp``."""
        return f"{self.prefix}_connectivities"

    @property
    def prefix(self) -> str:
        """Prefix of the keys of the graph: the user's, or that of the package."""
        return Keys.NEIGHBORS if self.neighbors_key is None else self.neighbors_key

    @property
    def distances_key(self) -> str:
        """Key of the distances in ``obsp``."""
        return f"{self.prefix}_distances"

    @property
    def is_empty(self) -> bool:
        """False, because setup and transfer skip empty fields."""
        return False

    def get_data_registry(self) -> dict:
        """Empty, to keep the graph out of the minibatches."""
        return {}

    def validate_field(self, adata: AnnData) -> None:
        """Check that the graph exists, is finite and links no two libraries.

        Parameters
        ----------
        adata
            Annotated spots.

        Raises
        ------
        KeyError
            If the graph is missing.
        ValueError
            If the graph has non-finite entries or an edge between two libraries.
        """
        if self.attr_key not in adata.obsp:
            raise KeyError(
                f"adata.obsp[{self.attr_key!r}] is missing (found: {sorted(adata.obsp)}). Compute it, e.g. with "
                f"squidpy.gr.spatial_neighbors_knn(adata, key_added={self.prefix!r}), or leave out neighbors_key to "
                "have the graph built."
            )
        keys = [self.attr_key] + ([self.distances_key] if self.distances_key in adata.obsp else [])
        for key in keys:
            row, col, weight = graph_edges(adata.obsp[key])
            if not np.isfinite(weight).all():
                bad = np.flatnonzero(~np.isfinite(weight))[0]
                raise ValueError(
                    f"adata.obsp[{key!r}] has NaN or infinite entries, the first between spots "
                    f"{adata.obs_names[row[bad]]!r} and {adata.obs_names[col[bad]]!r}; recompute the graph."
                )
        crossing = self._crossing_edge(adata)
        if crossing is not None:
            first, second = adata.obs_names[crossing]
            one, other = adata.obs[self.library_key].iloc[crossing]
            raise ValueError(
                f"adata.obsp[{self.attr_key!r}] links spot {first!r} to spot {second!r} of another library "
                f"(obs[{self.library_key!r}]: {one!r} and {other!r}). Compute the graph within libraries, e.g. with "
                f"squidpy.gr.spatial_neighbors_knn(adata, library_key={self.library_key!r}), or leave out "
                "neighbors_key to have it built."
            )

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Build the graph, or check the user's.

        Parameters
        ----------
        adata
            Annotated spots; changed in place.

        Returns
        -------
        State of the field, plain values only.
        """
        if self.neighbors_key is None:
            # Always rebuilt: it is cheap, and a graph from an earlier setup may be outdated.
            self._build(adata)
        super().register_field(adata)
        return {
            self.CONNECTIVITIES_KEY: self.attr_key,
            self.DISTANCES_KEY: self.distances_key,
            self.N_NEIGHBORS_KEY: self.n_neighbors,
            self.BUILT_KEY: self.neighbors_key is None,
        }

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Keep a built graph that fits the positions, else rebuild it; check the user's.

        Parameters
        ----------
        state_registry
            State from :meth:`register_field`.
        adata_target
            Annotated spots passed to a trained model; changed in place.
        **kwargs
            Ignored; other fields use them.

        Returns
        -------
        State of the field, equal to `state_registry`.
        """
        super().transfer_field(state_registry, adata_target, **kwargs)
        if self.neighbors_key is None and not self._fits(adata_target):
            self._build(adata_target)
        self.validate_field(adata_target)
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Number of neighbours per spot.

        Parameters
        ----------
        state_registry
            State from :meth:`register_field`.

        Returns
        -------
        One entry.
        """
        return {f"n_{self.registry_key}": state_registry[self.N_NEIGHBORS_KEY]}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Format the state for ``view_anndata_setup``.

        Parameters
        ----------
        state_registry
            State from :meth:`register_field`.

        Returns
        -------
        One row.
        """
        table = rich.table.Table(title=f"{self.registry_key} State Registry")
        for name in ("Source Location", "Neighbors", "Built by setup"):
            table.add_column(name, justify="center")
        table.add_row(
            f"adata.obsp['{state_registry[self.CONNECTIVITIES_KEY]}']",
            str(state_registry[self.N_NEIGHBORS_KEY]),
            str(state_registry[self.BUILT_KEY]),
        )
        return table

    def _build(self, adata: AnnData) -> None:
        add_spatial_graph(adata, **self._graph(), key_added=self.prefix)

    def _graph(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("spatial_key", "library_key", "n_neighbors", "max_distance")}

    def _fits(self, adata: AnnData) -> bool:
        """Whether a built graph is present and its edges fit the positions and libraries."""
        if self.attr_key not in adata.obsp or self.distances_key not in adata.obsp:
            return False
        expected = graph_params(**self._graph())
        # anndata.concat(pairwise=True) keeps obsp but by default drops uns: rebuild a graph of unknown origin.
        stored = adata.uns.get(f"{self.prefix}_neighbors", {})
        if dict(stored.get("params", {})) != expected:
            return False
        row, col, _ = graph_edges(adata.obsp[self.attr_key])
        if len(row) and np.bincount(row).max() > self.n_neighbors:
            return False
        positions = np.asarray(adata.obsm[self.spatial_key], dtype=np.float64)
        lengths = edge_lengths(adata.obsp[self.distances_key], row, col)
        now = np.linalg.norm(positions[row] - positions[col], axis=1)
        # The span absorbs the rounding of positions that were stored as float32.
        span = float(np.abs(positions).max(initial=0.0))
        return bool(np.allclose(lengths, now, rtol=1e-4, atol=1e-6 * span)) and self._crossing_edge(adata) is None

    def _crossing_edge(self, adata: AnnData) -> list[int] | None:
        """Find the two spots of the first edge between two libraries, if there is one."""
        if self.library_key is None:
            return None
        codes = library_codes(adata.obs[self.library_key], adata.n_obs)
        row, col, _ = graph_edges(adata.obsp[self.attr_key])
        crossing = np.flatnonzero(codes[row] != codes[col])
        if len(crossing) == 0:
            return None
        return [int(row[crossing[0]]), int(col[crossing[0]])]
