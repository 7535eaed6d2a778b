"""Visible part of an AnnData: observed counts, depth and neighbourhoods, without hidden entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pandas.util import hash_array
from scipy import sparse

from lgdist_scvi._constants import REGISTRY_KEYS

from ._batch import Batch
from ._entries import observed_entries, observed_matrix
from ._graph_field import SpatialGraphField
from ._hidden import Hidden
from ._medians import fill_by_group, group_median
from ._neighbors import library_codes, neighbor_index
from ._pooling import HOPS, Pools, radii_of
from ._registered import digest_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scvi.data import AnnDataManager

    from ._entries import Matrix
    from ._similar import SimilarSpots

SILENT_COUNTS = 0.5
"""Counts that a gene without a count is taken to have, so that its share is above 0."""


class SpotView:
    """Counts and neighbourhoods of all spots, without the hidden entries.

    Hidden counts are dropped here, before anything is computed from the counts, and no later step has access to the
    AnnData. So hidden entries cannot enter a model.

    Parameters
    ----------
    counts
        Observed counts, shape ``(n_spots, n_genes)``; 0 where hidden.
    hidden
        Hidden entries.
    depth
        Depth of every spot in counts, ``(n_spots,)``; 0 is replaced by the median of the section, and all entries of a spot
        that has neither a depth nor a count are hidden.
    section
        Number of the section (batch, else library) of each spot, for the average profile, ``(n_spots,)``.
    half
        Half of its section to which each spot belongs, 0 or 1, ``(n_spots,)``.
    connectivities, distances
        Spatial graph, ``(n_spots, n_spots)``.
    n_neighbors
        Neighbours per spot.
    image
        Image embeddings, ``(n_spots, n_image)``; NaN for spots without an image.
    share
        Expected share of each gene in a spot's depth, ``(n_genes,)``; computed from this view if None.
    radii
        Result of :func:`~lgdist_scvi.data._pooling.radii_of`, where it is at hand from a view with the same graph.
    library
        Number of the library of each spot, ``(n_spots,)``, within which distances have one unit; by default the section.
    names
        Hash of the name of each spot, ``(n_spots,)``, by which ties between neighbours are broken; zeros by default.
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        hidden: Hidden,
        depth: NDArray,
        section: NDArray,
        half: NDArray,
        connectivities: sparse.csr_matrix,
        distances: sparse.csr_matrix | None,
        n_neighbors: int,
        image: NDArray,
        share: NDArray | None = None,
        radii: list[sparse.csr_matrix] | None = None,
        library: NDArray | None = None,
        names: NDArray[np.uint64] | None = None,
    ) -> None:
        self._counted = np.asarray(depth, dtype=np.float32)
        # The zeros of a spot without a count say nothing of its genes: at the median depth they would say that it has none.
        self.counts, self.hidden = counts, hidden.with_spots((self._counted <= 0) & (counts.getnnz(axis=1) == 0))
        # Nor may a depth be zero: it is divided by.
        self.depth = np.maximum(fill_by_group(self._counted, section, self._counted <= 0), 1e-6)
        self.section, self.half = section, half
        self._library = section if library is None else library
        self.names = np.zeros(self.n_spots, dtype=np.uint64) if names is None else names
        self._graph = (connectivities, distances, n_neighbors)
        self.neighbors, length, self.neighbor_mask = neighbor_index(connectivities, distances, n_neighbors, self.names)
        # Libraries may be measured in different units, also those of one batch.
        spot, place = np.nonzero(self.neighbor_mask)
        known = length[spot, place]
        typical = group_median(known, self._library[spot], self._library)
        self.neighbor_distance = (length / np.fmax(typical, 1e-12)[:, None]).astype(np.float32)
        self.image_mask = np.isfinite(image).all(axis=1)
        self.image = np.where(self.image_mask[:, None], image, 0).astype(np.float32)
        self.field = np.zeros((self.n_spots, 1, 0), dtype=np.float32)
        self.draws = np.zeros((self.n_spots, 0, 0), dtype=np.float32)
        self.spread = np.zeros((self.n_spots, 0), dtype=np.float32)
        self.similar: SimilarSpots | None = None
        self.clean = np.zeros((self.n_spots, 0), dtype=np.float32)
        self.share = _shares(counts, self.hidden, self.depth) if share is None else np.asarray(share, dtype=np.float64)
        self._radii = radii_of(connectivities) if radii is None else radii
        self.pools = Pools(counts, self.hidden, self.depth, section, half, self.share, self._radii)

    @classmethod
    def from_manager(
        cls, manager: AnnDataManager, *, zeros_missing: bool = False, share: NDArray | None = None
    ) -> SpotView:
        """Read the registered fields of an AnnData; counts of unobserved entries are never read.

        Parameters
        ----------
        manager
            Manager of the AnnData.
        zeros_missing
            Hide all zeros, as in the published convention.
        share
            Expected share of each gene from the data a model was trained on, ``(n_genes,)``.
        """
        adata = manager.adata
        # Read from the AnnData, not through the registry: observed_layer may be sparse, and counts may have any dtype.
        setup = manager.registry["setup_args"]
        matrix = adata.X if setup["layer"] is None else adata.layers[setup["layer"]]
        observed = observed_matrix(adata, setup["observed_layer"])
        counts = _observed_counts(matrix, observed)
        hidden = Hidden(adata.shape)
        if zeros_missing:
            hidden = Hidden.unobserved(counts.astype(bool))
        elif observed is not None:
            hidden = Hidden.unobserved(observed)
        library, section = (
            library_codes(adata.obs[key] if key else None, adata.n_obs)
            for key in (setup["library_key"], setup["batch_key"] or setup["library_key"])
        )
        if setup["size_factor_key"] is None:
            depth = np.asarray(counts.sum(axis=1)).ravel()
        else:
            depth = adata.obs[setup["size_factor_key"]].to_numpy(dtype=np.float32)
        state = manager.get_state_registry(REGISTRY_KEYS.GRAPH)
        connectivities = sparse.csr_matrix(adata.obsp[state[SpatialGraphField.CONNECTIVITIES_KEY]])
        distances = adata.obsp.get(state[SpatialGraphField.DISTANCES_KEY])
        image = np.zeros((adata.n_obs, 0), dtype=np.float32)
        if setup["image_key"] is not None:
            image = np.asarray(adata.obsm[setup["image_key"]], dtype=np.float32)
        names = hash_array(adata.obs_names.to_numpy(dtype=object))
        return cls(
            counts,
            hidden,
            depth,
            section,
            (names % 2).astype(np.intp),
            connectivities,
            distances,
            state[SpatialGraphField.N_NEIGHBORS_KEY],
            image,
            share,
            library=library,
            names=names,
        )

    @property
    def graph(self) -> sparse.csr_matrix:
        """Spatial graph, ``(n_spots, n_spots)``."""
        return self._graph[0]

    @property
    def wide(self) -> sparse.csr_matrix:
        """Marks the spots within the widest radius of each, ``(n_spots, n_spots)``."""
        return self._radii[-1]

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return self.counts.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.counts.shape[1]

    def without(self, entries: sparse.csr_matrix, share: NDArray | None = None) -> SpotView:
        """Copy in which further entries are hidden.

        Their counts are subtracted from the depth, which is then scaled up by the average share of their genes. So it still
        estimates the same quantity, independently of the hidden counts.

        Parameters
        ----------
        entries
            True where to hide, ``(n_spots, n_genes)``.
        share
            Expected share of each gene from the data a model was trained on; computed from the remaining entries if None.
        """
        removed = self.counts.multiply(entries)
        kept = (self.counts - removed).tocsr()
        kept.eliminate_zeros()
        hidden = self.hidden | entries
        # The share must not depend on the hidden counts either.
        depth = self._counted - np.asarray(removed.sum(axis=1)).ravel()
        expected = _shares(kept, hidden, depth) if share is None else share
        lost = np.minimum(np.asarray(self.hidden.new(entries) @ expected).ravel(), 0.99)
        image = np.where(self.image_mask[:, None], self.image, np.nan)
        filled = depth / (1 - lost)
        known: dict[str, Any] = {"radii": self._radii, "library": self._library, "names": self.names}
        return SpotView(kept, hidden, filled, self.section, self.half, *self._graph, image, share, **known)

    def halved(self, rows: NDArray[np.int64], seed: int) -> tuple[SpotView, sparse.csr_matrix]:
        """View of some spots with half of their molecules, drawn one by one, and the counts of the other half.

        Given the true rates the two halves are independent, so the other half tells the errors of what is said from the first.

        Parameters
        ----------
        rows
            Spots, ``(n_rows,)``; their neighbours among them remain neighbours.
        seed
            Seed of the draw.
        """
        counts = self.counts[rows]
        kept = counts.copy()
        kept.data = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
        other = (counts - kept).tocsr()
        kept.eliminate_zeros()
        connectivities, distances, n_neighbors = self._graph
        view = SpotView(
            kept,
            self.hidden.of(rows),
            self._counted[rows] / 2,
            self.section[rows],
            self.half[rows],
            connectivities[rows][:, rows],
            None if distances is None else sparse.csr_matrix(distances)[rows][:, rows],
            n_neighbors,
            np.where(self.image_mask[:, None], self.image, np.nan)[rows],
            library=self._library[rows],
            names=self.names[rows],
        )
        return view, other

    def gather(self, rows: NDArray[np.int64] | list[int], *, folds: bool = False) -> Batch:
        """Gather the minibatch of the given spots.

        Parameters
        ----------
        rows
            Spots, ``(n_spots,)``.
        folds
            Also gather what similar spots say by codes from which folds of the genes are left out.
        """
        rows = np.asarray(rows, dtype=np.int64)
        b, k = len(rows), self.neighbors.shape[1]
        # Gather centres and neighbours together; a missing neighbour is the spot itself, masked below.
        around = np.concatenate([rows[:, None], self.neighbors[rows]], axis=1)
        counts = self.counts[around.ravel()].toarray().reshape(b, k + 1, self.n_genes)
        mask = self.neighbor_mask[rows]
        counts[:, 1:][~mask] = 0
        if self.hidden.some:
            observed = ~self.hidden[around.ravel()].reshape(b, k + 1, self.n_genes)
            centre, near = observed[:, 0], observed[:, 1:]
        else:
            centre = ~self.hidden[rows]
            near = np.full((b, k, 1), not self.hidden.everything)
        arrays = (
            counts[:, 0],
            centre,
            self.depth[rows],
            counts[:, 1:],
            near,
            self.depth[self.neighbors[rows]],
            mask,
            self.neighbor_distance[rows],
            self.pools.of(rows),
            self.image[around],
            self.image_mask[around] & np.concatenate([np.ones((b, 1), dtype=bool), mask], axis=1),
            self.field[rows],
            self.draws[rows],
            self.spread[rows],
            np.zeros((b, 0, 0), dtype=np.float32) if self.similar is None else self.similar.of(rows, folds=folds),
            self.clean[rows],
        )
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def measured_share(self) -> NDArray[np.float64]:
        """Share of each gene in the depth of these spots, ``(n_genes,)``, independent of the training data."""
        return _shares(self.counts, self.hidden, self.depth)

    def digest(self) -> str:
        """Hash of everything that determines the predictions for these spots."""
        arrays = (
            *(part for matrix in (self.counts, self.graph) for part in (matrix.indptr, matrix.indices, matrix.data)),
            *self.hidden.parts(),
            *(self.neighbors, self.neighbor_mask, self.neighbor_distance),
            *(self.depth, self.section, self.half, self.image, self.image_mask, self.share),
        )
        return digest_arrays(arrays, self.counts.shape, HOPS)

    def fingerprints(self) -> NDArray[np.uint64]:
        """Fingerprint of the counts of each spot, ``(n_spots,)``."""
        weights = np.random.default_rng(0).integers(1, 1 << 63, self.n_genes, dtype=np.uint64)
        return self.counts.astype(np.uint64) @ weights  # modulo 2**64


def _observed_counts(matrix: Matrix, observed: Matrix | None) -> sparse.csr_matrix:
    """Observed counts in CSR format, assembled from small blocks."""
    if sparse.issparse(matrix):
        matrix = matrix.tocsr()
    length = np.zeros(matrix.shape[0], dtype=np.int64)
    columns, values = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.float32)]
    for row, col, value in observed_entries(matrix, observed):
        length += np.bincount(row, minlength=len(length))
        columns.append(col.astype(np.int32))
        values.append(value.astype(np.float32))
    indptr = np.concatenate([[0], np.cumsum(length)])
    counts = sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), indptr), shape=matrix.shape)
    counts.sort_indices()
    return counts


def _shares(counts: sparse.csr_matrix, hidden: Hidden, depth: NDArray) -> NDArray[np.float64]:
    """Share of each gene in the depth of the spots where it is visible, ``(n_genes,)``, never 0.

    A gene that is visible nowhere is taken for as rare as the rarest, and one without a count for rarer still: as if half a
    count had been seen.
    """
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    depth = depth.astype(np.float64)
    seen = depth.sum() - np.asarray(hidden.times(depth).sum(axis=0)).ravel()
    share = total / np.maximum(seen, 1.0)
    floor = share[share > 0].min(initial=1.0) if (share > 0).any() else 1.0 / max(len(share), 1)
    absent = np.where(seen >= 1, np.minimum(floor, SILENT_COUNTS / np.maximum(seen, 1.0)), floor)
    return np.where(total > 0, share, absent)
