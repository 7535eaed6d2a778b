"""Sections with the original photograph beside them, for the benchmarks that ask what an image tells."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import anndata
import numpy as np

from lgdist_scvi import pp

SETS = {
    "her2": ("breast tumour C2 to C6", [f"her2_breast_st_patientC/her2_breast_st_C{i}" for i in range(2, 7)]),
    "mob": ("olfactory bulb MOB1 to MOB4", [f"mouse_olfactory_bulb_st_MOB{i}" for i in range(1, 5)]),
}
LEAST_COUNTS = 100
LIBRARY = "section"


@cache
def sections(name: str, data: Path) -> anndata.AnnData:
    """All sections of a set, with embedded images; nearly empty spots are left out."""
    parts, images = [], {}
    for file in SETS[name][1]:
        part = anndata.read_h5ad(data / f"{file}.h5ad")
        library = next(iter(part.uns["spatial"]))
        part.obs[LIBRARY] = library
        part.obs_names = [f"{library} {spot}" for spot in part.obs_names]
        images[library] = data / f"{file}_fullres.jpg"
        parts.append(part)
    joined = anndata.concat(parts, uns_merge="unique")
    joined = joined[np.asarray(joined.X.sum(axis=1)).ravel() >= LEAST_COUNTS].copy()
    pp.image_embeddings(joined, image=images, library_key=LIBRARY, silent=True)
    return joined
