"""Names used in registries and in AnnData."""

from __future__ import annotations

from typing import NamedTuple

PACKAGE = "lgdist-scvi"
"""Name of the package in provenance."""
TARGET_SUM = 1e4
"""Counts per spot after normalisation: log values are log1p(counts / depth * TARGET_SUM)."""
IMPUTED_SUFFIX = "_imputed"
"""Suffix of the mask of imputed entries, after the name of the completed layer."""
STD_SUFFIX = "_std"
"""Suffix of the standard deviation."""


class RegistryKeys(NamedTuple):
    """Keys of the fields in the registry of scvi-tools' AnnDataManager."""

    X: str = "X"
    BATCH: str = "batch"
    LIBRARY: str = "library"
    SPATIAL: str = "spatial"
    OBSERVED: str = "observed"
    SIZE_FACTOR: str = "size_factor"
    IMAGE: str = "image"
    GRAPH: str = "neighbors"


REGISTRY_KEYS = RegistryKeys()


class Keys:
    """Names under which the package writes to an AnnData."""

    NEIGHBORS = "lgdist"
    """Prefix of ``obsp["lgdist_connectivities"]``, ``obsp["lgdist_distances"]`` and ``uns["lgdist_neighbors"]``."""
    LAYER = "lgdist"
    """Layer with the completed expression."""
    UNS = "lgdist"
    """Provenance of the completed layer in ``uns``."""
    LATENT = "X_lgdist"
    """Latent representation in ``obsm``."""
    NICHE = "X_lgdist_niche"
    """Representation of a spot with its surroundings in ``obsm``."""
    DOMAINS = "domain"
    """Column of ``obs`` with the domains, and their settings in ``uns``."""
    IMAGE = "X_image"
    """Image embeddings in ``obsm``, and their settings in ``uns``."""
    TARGET_GENES = "target_gene"
    """Boolean ``var`` column, True for target genes."""
    MORAN = "moran_i"
    """Float ``var`` column with Moran's I averaged over libraries."""
    CONTROLS = "controls"
    """Frame in ``obsm`` with the counts of control features."""
    DEPTH = "total_counts"
    """Float ``obs`` column with the observed counts of a spot over the whole transcriptome."""


class AuditKeys:
    """Names in an AnnData that is prepared for an audit."""

    COUNTS = "counts"
    """Layer with the given counts."""
    HELD_OUT = "held_out"
    """Layer with the molecules that are held out."""
    DEPTH = "depth"
    """Column of ``obs`` with the depth of the given counts."""
    HELD_OUT_DEPTH = "held_out_depth"
    """Column of ``obs`` with the depth of the molecules that are held out."""
    DECOY = "decoy"
    """Boolean ``var`` column, True for decoy genes."""
