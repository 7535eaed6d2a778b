"""Field of scvi-tools' AnnDataManager with the spatial graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.table
from scipy import sparse
from scvi.data.fields import BaseAnnDataField

from lgdist_scvi._constants import REGISTRY_KEYS, Keys

from ._entries import listing
from ._neighbors import add_spatial_graph, edge_lengths, graph_edges, graph_params, library_codes, spatial_graph

if TYPE_CHECKING:
    from anndata import AnnData


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
        """Check that the graph exists, is finite and not negative, and links no two libraries.

        Parameters
        ----------
        adata
            Annotated spots.

        Raises
        ------
        KeyError
            If the graph is missing.
        ValueError
            If the graph has non-finite or negative entries, or an edge between two libraries.
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
            wrong = ~(np.isfinite(weight) & (weight >= 0))
            if wrong.any():
                bad = np.flatnonzero(wrong)[0]
                raise ValueError(
                    f"adata.obsp[{key!r}] has NaN, infinite or negative entries, the first ({weight[bad]}) between spots "
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
        if self.neighbors_key is not None:
            self._check_degrees(adata)
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

    def _check_degrees(self, adata: AnnData) -> None:
        """Warn of a graph of the user without edges in a library, and of one of which a part is not used."""
        row, _, _ = graph_edges(adata.obsp[self.attr_key])
        degree = np.bincount(row, minlength=adata.n_obs)
        codes = library_codes(None if self.library_key is None else adata.obs[self.library_key], adata.n_obs)
        if (alone := np.bincount(codes, weights=degree) == 0).any():
            where = ""
            if self.library_key is not None:
                where = f" within the libraries {listing(adata.obs[self.library_key][alone[codes]].unique())}"
            warnings.warn(
                f"adata.obsp[{self.attr_key!r}] has no edge{where}, so that each spot is completed without neighbours. Recompute the "
                "graph, or leave out neighbors_key to have it built, if that is unwanted.",
                UserWarning,
                stacklevel=6,
            )
        if (most := int(degree.max())) > self.n_neighbors:
            warnings.warn(
                f"adata.obsp[{self.attr_key!r}] has up to {most} neighbours per spot, of which the network sees the nearest "
                f"{self.n_neighbors}; pass n_neighbors={most} to have it see all.",
                UserWarning,
                stacklevel=6,
            )

    def _build(self, adata: AnnData) -> None:
        """Build the graph, but in place of none but an earlier one.

        Raises
        ------
        ValueError
            If there is another graph of this name.
        """
        uns_key = f"{self.prefix}_neighbors"
        found = [f"obsp[{key!r}]" for key in (self.attr_key, self.distances_key) if key in adata.obsp]
        found += [f"uns[{uns_key!r}]"] * (uns_key in adata.uns)
        own = "max_distance_factor" in self._stored_params(adata)
        # Without uns, such as after anndata.concat(pairwise=True), a graph may be what will be built.
        if found and not own and (uns_key in adata.uns or not self._equals_built(adata)):
            raise ValueError(
                f"adata has {' and '.join(found)}, not written by setup_anndata, which would replace it. To use this graph pass "
                f"neighbors_key={self.prefix!r}; to have one built give it another name or delete it."
            )
        add_spatial_graph(adata, **self._graph(), key_added=self.prefix)

    def _graph(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("spatial_key", "library_key", "n_neighbors", "max_distance")}

    def _equals_built(self, adata: AnnData) -> bool:
        """Whether there are the edges of the graph that would be built."""
        if self.attr_key not in adata.obsp:
            return False
        libraries = None if self.library_key is None else adata.obs[self.library_key]
        positions = np.asarray(adata.obsm[self.spatial_key])
        built, _ = spatial_graph(positions, libraries, self.n_neighbors, self.max_distance)
        return (sparse.csr_matrix(adata.obsp[self.attr_key]) != built).nnz == 0

    def _stored_params(self, adata: AnnData) -> dict[str, Any]:
        """Parameters of the graph that is there; empty where they are unknown."""
        stored = adata.uns.get(f"{self.prefix}_neighbors")
        params = stored.get("params") if isinstance(stored, Mapping) else None
        return dict(params) if isinstance(params, Mapping) else {}

    def _fits(self, adata: AnnData) -> bool:
        """Whether a built graph is present and its edges fit the positions and libraries."""
        if self.attr_key not in adata.obsp or self.distances_key not in adata.obsp:
            return False
        if self._stored_params(adata) != graph_params(**self._graph()):
            return False
        row, col, weight = graph_edges(adata.obsp[self.attr_key])
        # Of a graph that was built nothing is stored but edges.
        if len(row) < sparse.csr_matrix(adata.obsp[self.attr_key]).nnz or not (weight == 1).all():
            return False
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
