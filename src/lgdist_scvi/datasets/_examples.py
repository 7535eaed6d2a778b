"""Sections for examples: real ones if available, else simulated ones."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import anndata
import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_choice, check_whole
from lgdist_scvi.pp._visium import tidy

from ._simulated import PITCH, simulated_tissue

if TYPE_CHECKING:
    from anndata import AnnData

Tissue = Literal["cortex", "bulb", "tumour", "cells", "bins"]
FOLDER = "LGDIST_EXAMPLE_DATA"
LEAST_SPOTS = 10  # with the gene


@dataclass(frozen=True)
class _Sources:
    """Files in a local folder, and samples of 10x Genomics, in order of use."""

    files: tuple[str, ...]
    samples: tuple[str, ...] = ()
    least_counts: int = 200
    """Of a spot."""
    depth: int = 400
    """Of the simulation that stands in, in counts."""
    pitch: float | None = None
    """Distance of neighbours in that simulation, where positions are not pixels of an image."""
    microns: float | None = None
    """Micrometres per unit of the positions, where they are not pixels of an image."""


_SOURCES = {
    "cortex": _Sources(
        tuple(f"dlpfc_visium_{i}" for i in (151673, 151674, 151675, 151676)),
        ("V1_Human_Brain_Section_1", "V1_Human_Brain_Section_2"),
    ),
    "bulb": _Sources(
        tuple(f"mouse_olfactory_bulb_st_MOB{i}" for i in (1, 2, 3, 4)),
        ("V1_Mouse_Brain_Sagittal_Anterior", "V1_Mouse_Brain_Sagittal_Anterior_Section_2"),
    ),
    "tumour": _Sources(("crc_visium_CRC16",), ("Parent_Visium_Human_ColorectalCancer",)),
    "cells": _Sources(("sparse/mouse_brain_xenium",), least_counts=20, depth=200, pitch=12.0, microns=1.0),
    "bins": _Sources(
        ("sparse/mouse_brain_stereoseq_SS200000135TL_D1_crop_bin10",), least_counts=1, depth=60, pitch=10.0, microns=0.5
    ),
}


def example_tissue(tissue: Tissue, n_sections: int = 1, *, folder: str | Path | None = None) -> AnnData:
    """Sections of a tissue for examples: from a folder, else from a download, else simulated.

    ``uns["source"]`` names the source. Downloads use :func:`squidpy.datasets.visium` and are stored in scanpy's folder
    for data sets; of cells and bins there are none. Spots with fewer than 200 counts, cells with fewer than 20, bins without
    any, and genes detected in fewer than 10 spots are left out.

    Parameters
    ----------
    tissue
        "cortex": human cortex (Visium). "bulb": mouse olfactory bulb (Spatial Transcriptomics; as a download, the anterior
        mouse brain, Visium). "tumour": human colorectal tumour (Visium). "cells": mouse brain, 248 genes (Xenium). "bins":
        mouse brain, bins of 5 micrometres (Stereo-seq).
    n_sections
        Number of sections. Fewer are returned if fewer can be downloaded.
    folder
        Folder with h5ad files, named as in ``uns["source"]``, with raw counts in ``X`` and with positions and images in
        the layout of squidpy; by default that in the environment variable ``LGDIST_EXAMPLE_DATA``, if set.

    Returns
    -------
    Spots with raw counts in ``X`` and ``layers["counts"]``, the section in ``obs["library_id"]``, positions in pixels of
    the full-resolution image in ``obsm["spatial"]``, and images in ``uns["spatial"]``. Positions of cells are micrometres, and
    those of bins pixels of half a micrometre.

    Raises
    ------
    ValueError
        If the tissue is unknown, or a folder has fewer sections of it.
    FileNotFoundError
        If the folder lacks the files.

    Warns
    -----
    UserWarning
        If the download fails and the tissue is simulated.

    Examples
    --------
    >>> adata = lgdist_scvi.datasets.example_tissue("cortex")
    >>> source = adata.uns["source"]
    """
    check_choice("tissue", tissue, get_args(Tissue))
    check_whole(1, n_sections=n_sections)
    sources = _SOURCES[tissue]
    named = folder or os.environ.get(FOLDER)
    if named:
        return _from_folder(Path(named), sources, n_sections)
    try:
        return _download(sources, n_sections)
    except (OSError, ExceptionGroup) as error:
        reason = "; ".join(map(str, error.exceptions)) if isinstance(error, ExceptionGroup) else str(error)
        warnings.warn(
            f"No section of {tissue!r} could be downloaded ({reason}), so the tissue is SIMULATED. To use real "
            f"sections, name their folder in folder=... or in the environment variable {FOLDER}.",
            stacklevel=2,
        )
    adata = simulated_tissue(600 * n_sections, 300, n_libraries=n_sections, depth=sources.depth)
    if sources.pitch is not None:
        adata.obsm["spatial"] = adata.obsm["spatial"] / PITCH * sources.pitch
        adata.uns["spatial"] = {name: _scale(sources) for name in adata.uns["spatial"]}
    adata.uns["source"] = "lgdist_scvi.datasets.simulated_tissue"
    return adata


def _from_folder(folder: Path, sources: _Sources, n_sections: int) -> AnnData:
    names = sources.files
    if n_sections > len(names):
        raise ValueError(
            f"n_sections={n_sections}, but there are {len(names)} sections of this tissue: {', '.join(names)}."
        )
    files = [folder / f"{name}.h5ad" for name in names[:n_sections]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; correct folder=... (or {FOLDER}).")
    sections = [anndata.read_h5ad(file) for file in files]
    for section, file in zip(sections, files, strict=True):
        section.uns.setdefault("spatial", {file.stem: _scale(sources)})
    return _joined([tidy(section) for section in sections], [file.name for file in files], sources.least_counts)


def _scale(sources: _Sources) -> dict[str, dict[str, float | None]]:
    """What :mod:`lgdist_scvi.pl` reads the length of scale bars from."""
    return {"scalefactors": {"microns_per_pixel": sources.microns}}


def _download(sources: _Sources, n_sections: int) -> AnnData:
    import squidpy

    samples = sources.samples[:n_sections]
    if not samples:
        raise OSError("squidpy has none")
    sections = [tidy(squidpy.datasets.visium(sample)) for sample in samples]
    return _joined(sections, [f"10x Genomics, {sample}" for sample in samples], sources.least_counts)


def _joined(sections: list[AnnData], sources: list[str], least_counts: int) -> AnnData:
    """Concatenate sections, with the genes that all of them share."""
    for section in sections:
        section.obs_names = section.obs["library_id"].astype(str) + "_" + section.obs_names
    adata = anndata.concat(sections, uns_merge="unique") if len(sections) > 1 else sections[0]
    counts = sparse.csr_matrix(adata.layers["counts"])
    genes = np.asarray((counts > 0).sum(axis=0)).ravel() >= LEAST_SPOTS
    spots = np.asarray(counts[:, genes].sum(axis=1)).ravel() >= least_counts
    adata = adata[spots, genes].copy()
    adata.uns = {"spatial": adata.uns["spatial"], "source": ", ".join(sources)}
    return adata
