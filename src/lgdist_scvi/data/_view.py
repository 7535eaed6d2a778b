"""What a model may see of an AnnData: observed counts, depth and neighbourhoods, with everything hidden removed."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from pandas.util import hash_array
from scipy import sparse

from lgdist_scvi._constants import REGISTRY_KEYS

from ._entries import observed_entries, observed_matrix
from ._fields import SpatialGraphField
from ._neighbors import hop_weights, library_codes, neighbor_index

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scvi.data import AnnDataManager

    from ._entries import Matrix

HOPS = (1, 2, 4)
"""Radii of the pooled neighbourhoods in hops: about 6, 18 and 60 spots on a hexagonal grid."""
N_POOLS = len(HOPS) + 1
"""Pooled expressions per spot: the section and one for each radius."""

# Pseudo-counts that shrink a pooled share towards the next wider one: a section towards all, a radius towards the next.
_SECTION_PSEUDO_COUNTS = 20.0
_RADIUS_PSEUDO_COUNTS = 3.0
_CACHE_BYTES = 1 << 29
_BLOCK_BYTES = 1 << 26


class Batch(NamedTuple):
    """Tensors of a minibatch of spots with their neighbours and pooled neighbourhoods."""

    counts: torch.Tensor
    """Counts of the spots, ``(n_spots, n_genes)``, 0 where hidden."""
    observed: torch.Tensor
    """True where an entry may be seen, ``(n_spots, n_genes)``."""
    depth: torch.Tensor
    """Depth of the spots in counts, ``(n_spots,)``."""
    neighbor_counts: torch.Tensor
    """Counts of the neighbours, ``(n_spots, n_neighbors, n_genes)``, 0 where hidden."""
    neighbor_observed: torch.Tensor
    """True where an entry of a neighbour may be seen, ``(n_spots, n_neighbors, n_genes)``; when nothing is hidden,
    ``(n_spots, n_neighbors, 1)``."""
    neighbor_depth: torch.Tensor
    """Depth of the neighbours in counts, ``(n_spots, n_neighbors)``."""
    neighbor_mask: torch.Tensor
    """True where a neighbour exists, ``(n_spots, n_neighbors)``."""
    neighbor_distance: torch.Tensor
    """Distance to the neighbours in units of the section's median distance, ``(n_spots, n_neighbors)``."""
    pooled: torch.Tensor
    """Log ratio of each pooled share to the next wider, without the spot itself, ``(n_spots, n_pools, n_genes)``."""
    image: torch.Tensor
    """Image embeddings of the spots and their neighbours, ``(n_spots, 1 + n_neighbors, n_image)``; without images
    `n_image` is 0."""
    image_mask: torch.Tensor
    """True where a spot or neighbour has an image, ``(n_spots, 1 + n_neighbors)``."""
    clean: torch.Tensor
    """Codes that the diffusion learns to draw, ``(n_spots, n_latent)``; ``(n_spots, 0)`` where it is not trained."""

    def to(self, device: torch.device | str) -> Batch:
        """Copy on a device."""
        return Batch(*(tensor.to(device) for tensor in self))

    def without_images(self, spots: torch.Tensor) -> Batch:
        """Hide all images in the neighbourhoods of the given spots, ``(n_spots,)``."""
        return self._replace(image_mask=self.image_mask & ~spots[:, None])

    def images_only(self, spots: torch.Tensor) -> Batch:
        """Hide all expression in the neighbourhoods of the given spots, ``(n_spots,)``."""
        shown = ~spots[:, None]
        return self._replace(
            counts=self.counts * shown,
            observed=self.observed & shown,
            neighbor_counts=self.neighbor_counts * shown[..., None],
            neighbor_observed=self.neighbor_observed & shown[..., None],
            pooled=self.pooled * shown[..., None],
        )


class SpotView:
    """Counts and neighbourhoods of all spots, without the hidden entries.

    Hidden counts are dropped here, before anything is computed from the counts, and nothing downstream holds the
    AnnData: whatever is hidden from the view cannot reach a model.

    Parameters
    ----------
    counts
        Observed counts, shape ``(n_spots, n_genes)``; 0 where hidden.
    hidden
        True where an entry is hidden, same shape.
    depth
        Depth of every spot in counts, ``(n_spots,)``; where it is 0 the section's median takes its place.
    section
        Number of the section (batch, else library) whose average profile a spot shares, ``(n_spots,)``.
    half
        Half of its section that a spot belongs to, 0 or 1, ``(n_spots,)``.
    connectivities, distances
        Spatial graph, ``(n_spots, n_spots)``.
    n_neighbors
        Neighbours per spot.
    image
        Image embeddings, ``(n_spots, n_image)``; NaN for spots without an image.
    share
        Expected share of each gene in a spot's depth, ``(n_genes,)``; computed from this view if None.
    radii
        Spots within each of the :data:`HOPS`, where they are at hand from a view with the same graph.
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        hidden: sparse.csr_matrix,
        depth: NDArray,
        section: NDArray,
        half: NDArray,
        connectivities: sparse.csr_matrix,
        distances: sparse.csr_matrix | None,
        n_neighbors: int,
        image: NDArray,
        share: NDArray | None = None,
        radii: list[sparse.csr_matrix] | None = None,
    ) -> None:
        self.counts, self.hidden = counts, hidden
        self._counted = np.asarray(depth, dtype=np.float32)
        self.depth = _fill_depth(self._counted, section)
        self.section, self.half = section, half
        self._graph = (connectivities, distances, n_neighbors)
        self.neighbors, length, self.neighbor_mask = neighbor_index(connectivities, distances, n_neighbors)
        # Sections may be measured in different units.
        of_section = np.repeat(section, self.neighbor_mask.sum(axis=1))
        typical = pd.Series(length[self.neighbor_mask]).groupby(of_section).median().reindex(section).to_numpy()
        self.neighbor_distance = (length / np.fmax(typical, 1e-12)[:, None]).astype(np.float32)
        self.image_mask = np.isfinite(image).all(axis=1)
        self.image = np.where(self.image_mask[:, None], image, 0).astype(np.float32)
        self.clean = np.zeros((self.n_spots, 0), dtype=np.float32)
        self.share = _shares(counts, hidden, self.depth) if share is None else np.asarray(share, dtype=np.float64)
        self._radii = hop_weights(connectivities, HOPS) if radii is None else radii
        # What is hidden of the depth, which pooling takes off.
        self._hidden_depth = hidden.multiply(self.depth[:, None]).tocsr()
        # A spot gets the profile of the half of its section that it is not in. The profile of the whole would hold the
        # spot's own counts, and that of the whole without the spot would give them away as what is missing from it.
        half_section = 2 * section + half
        self._other_half = 2 * section + 1 - half
        halves = sparse.csr_matrix(
            (np.ones(self.n_spots, dtype=np.float32), (half_section, np.arange(self.n_spots))),
            shape=(2 * (int(section.max(initial=0)) + 1), self.n_spots),
        )
        self._half_total = halves @ counts
        self._half_depth = self._visible_depth(halves, np.arange(halves.shape[0]))

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
            Hide every zero, the published convention.
        share
            Expected share of each gene from the data a model was trained on, ``(n_genes,)``.
        """
        adata = manager.adata
        # Straight from the AnnData, not through the registry: observed_layer may be sparse and counts of any dtype.
        setup = manager.registry["setup_args"]
        matrix = adata.X if setup["layer"] is None else adata.layers[setup["layer"]]
        observed = observed_matrix(adata, setup["observed_layer"])
        counts = _observed_counts(matrix, observed)
        hidden = sparse.csr_matrix(adata.shape, dtype=bool)
        if zeros_missing:
            hidden = _complement(counts.astype(bool))
        elif observed is not None:
            hidden = _complement(observed)
        section_key = setup["batch_key"] or setup["library_key"]
        section = library_codes(adata.obs[section_key] if section_key else None, adata.n_obs)
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
        return cls(
            counts,
            hidden,
            depth,
            section,
            (hash_array(adata.obs_names.to_numpy(dtype=object)) % 2).astype(np.intp),
            connectivities,
            distances,
            state[SpatialGraphField.N_NEIGHBORS_KEY],
            image,
            share,
        )

    @cached_property
    def _pooled(self) -> NDArray[np.float32] | None:
        """Pooled neighbourhoods of all spots, ``(n_spots, n_pools, n_genes)``; None where too large for the memory."""
        if self.n_spots * N_POOLS * self.n_genes * 4 > _CACHE_BYTES:
            return None
        step = max(1, _BLOCK_BYTES // (8 * self.n_genes))
        blocks = [np.arange(i, min(i + step, self.n_spots)) for i in range(0, self.n_spots, step)]
        return np.concatenate([self._pool(block) for block in blocks])

    @property
    def graph(self) -> sparse.csr_matrix:
        """Spatial graph, ``(n_spots, n_spots)``."""
        return self._graph[0]

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

        The depth loses their counts and is scaled up by the share that their genes have on average, so that it stays
        an estimate of the same quantity without knowing the hidden counts.

        Parameters
        ----------
        entries
            True where to hide, ``(n_spots, n_genes)``.
        share
            Expected share of each gene from the data a model was trained on; computed from what is left if None.
        """
        removed = self.counts.multiply(entries)
        kept = (self.counts - removed).tocsr()
        kept.eliminate_zeros()
        hidden = (self.hidden + entries).astype(bool).tocsr()
        # The share must not know the hidden counts either.
        depth = self._counted - np.asarray(removed.sum(axis=1)).ravel()
        expected = _shares(kept, hidden, depth) if share is None else share
        lost = np.minimum(np.asarray((entries - self.hidden.multiply(entries)) @ expected).ravel(), 0.99)
        image = np.where(self.image_mask[:, None], self.image, np.nan)
        filled = depth / (1 - lost)
        return SpotView(kept, hidden, filled, self.section, self.half, *self._graph, image, share, self._radii)

    def gather(self, rows: NDArray[np.int64] | list[int]) -> Batch:
        """Collect the minibatch of the given spots.

        Parameters
        ----------
        rows
            Spots, ``(n_spots,)``.
        """
        rows = np.asarray(rows, dtype=np.int64)
        b, k = len(rows), self.neighbors.shape[1]
        # Centres and neighbours in one gather; a missing neighbour is the spot itself, masked below.
        around = np.concatenate([rows[:, None], self.neighbors[rows]], axis=1)
        counts = self.counts[around.ravel()].toarray().reshape(b, k + 1, self.n_genes)
        mask = self.neighbor_mask[rows]
        counts[:, 1:][~mask] = 0
        if self.hidden.nnz:
            observed = ~self.hidden[around.ravel()].toarray().reshape(b, k + 1, self.n_genes)
            centre, near = observed[:, 0], observed[:, 1:]
        else:
            centre, near = np.ones((b, self.n_genes), dtype=bool), np.ones((b, k, 1), dtype=bool)
        arrays = (
            counts[:, 0],
            centre,
            self.depth[rows],
            counts[:, 1:],
            near,
            self.depth[self.neighbors[rows]],
            mask,
            self.neighbor_distance[rows],
            self.pooled(rows),
            self.image[around],
            self.image_mask[around] & np.concatenate([np.ones((b, 1), dtype=bool), mask], axis=1),
            self.clean[rows],
        )
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def measured_share(self) -> NDArray[np.float64]:
        """Share of each gene in the depth of these spots, ``(n_genes,)``, whatever the model was trained on."""
        return _shares(self.counts, self.hidden, self.depth)

    def digest(self) -> str:
        """Hash of everything that what a model says of these spots depends on."""
        digest = hashlib.sha256(repr((self.counts.shape, HOPS)).encode())
        matrices = (self.counts, self.hidden, self.graph)
        for array in (
            *(part for matrix in matrices for part in (matrix.indptr, matrix.indices, matrix.data)),
            *(self.neighbors, self.neighbor_mask, self.neighbor_distance),
            *(self.depth, self.section, self.half, self.image, self.image_mask, self.share),
        ):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def fingerprints(self) -> NDArray[np.uint64]:
        """Number of each spot that only the same counts give, ``(n_spots,)``."""
        weights = np.random.default_rng(0).integers(1, 1 << 63, self.n_genes, dtype=np.uint64)
        return self.counts.astype(np.uint64) @ weights  # modulo 2**64

    def _visible_depth(self, weights: sparse.csr_matrix, rows: NDArray) -> NDArray:
        """Depth of the pooled spots, ``(n_spots, 1)``, where entries are hidden per gene, ``(n_spots, n_genes)``."""
        chosen = weights[rows]
        total = np.asarray(chosen @ self.depth)[:, None]
        if not self.hidden.nnz:
            return total
        lost = chosen @ self._hidden_depth
        return np.maximum(total - lost.toarray(), 0)

    def pooled(self, rows: NDArray) -> NDArray[np.float32]:
        """Log ratio of each pooled share to the next wider, as in :class:`Batch`, ``(n_spots, n_pools, n_genes)``."""
        return self._pool(rows) if self._pooled is None else self._pooled[rows]

    def _pool(self, rows: NDArray) -> NDArray[np.float32]:
        other = self._other_half[rows]
        total, depth = self._half_total[other].toarray(), self._half_depth[other]
        wider = _shrink(total, depth, self.share[None], _SECTION_PSEUDO_COUNTS)
        ratios = [np.log(wider / self.share)]
        for weights in reversed(self._radii):
            total = (weights[rows] @ self.counts).toarray()
            share = _shrink(total, self._visible_depth(weights, rows), wider, _RADIUS_PSEUDO_COUNTS)
            ratios.append(np.log(share / wider))
            wider = share
        return np.stack(ratios, axis=1).astype(np.float32)


def _observed_counts(matrix: Matrix, observed: Matrix | None) -> sparse.csr_matrix:
    """Observed counts by rows, put together from blocks that take little memory."""
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


def _shrink(total: NDArray, depth: NDArray, prior: NDArray, strength: float) -> NDArray:
    """Gamma-Poisson posterior mean of a share whose prior mean is worth `strength` counts."""
    return prior * (total + strength) / (prior * depth + strength)


def _shares(counts: sparse.csr_matrix, hidden: sparse.csr_matrix, depth: NDArray) -> NDArray[np.float64]:
    """Share of each gene in the depth of the spots in which it is visible, ``(n_genes,)``, never 0."""
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    seen = depth.sum(dtype=np.float64) - np.asarray(hidden.T @ depth.astype(np.float64)).ravel()
    share = total / np.maximum(seen, 1.0)
    floor = share[share > 0].min(initial=1.0) if (share > 0).any() else 1.0 / max(len(share), 1)
    return np.where(total > 0, share, floor)


def _fill_depth(depth: NDArray, section: NDArray) -> NDArray[np.float32]:
    """Give spots without an observed count the median depth of their section."""
    depth = np.array(depth, dtype=np.float32)
    empty = depth <= 0
    if empty.any() and not empty.all():
        overall = np.median(depth[~empty])
        for code in np.unique(section[empty]):
            known = depth[(section == code) & ~empty]
            depth[empty & (section == code)] = np.median(known) if len(known) else overall
    return np.maximum(depth, 1e-6)


def _complement(observed: Matrix) -> sparse.csr_matrix:
    """Entries that are not observed, in blocks of rows."""
    step = max(1, _BLOCK_BYTES // max(1, observed.shape[1]))
    rows = observed.tocsr() if sparse.issparse(observed) else observed
    blocks = []
    for start in range(0, observed.shape[0], step):
        block = rows[start : start + step]
        blocks.append(sparse.csr_matrix(~(block.toarray() if sparse.issparse(block) else block)))
    return sparse.vstack(blocks, format="csr")
