"""Reading of Space Ranger output: spots, bins and cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from lgdist_scvi._checks import check_whole
from lgdist_scvi._quiet import quiet
from lgdist_scvi.data._entries import listing

if TYPE_CHECKING:
    from anndata import AnnData

_COUNTS = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix")
_CELL_COUNTS = ("filtered_feature_cell_matrix.h5", "filtered_feature_cell_matrix")
# Of Space Ranger for bins, from 2 on, and 1.
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_SCALE = "spatial/scalefactors_json.json"
_CELLS = "cell_segmentations.geojson"
_BINNED, _SEGMENTED = "binned_outputs", "segmented_outputs"


def from_visium(path: str | Path, *, library_id: str | None = None, counts_file: str | None = None) -> AnnData:
    """Read the output folder of Space Ranger 1 to 4, through :func:`squidpy.read.visium` and scanpy.

    Images are optional. The positions may be in ``tissue_positions_list.csv`` (Space Ranger 1), ``tissue_positions.csv``
    (2 and later) or ``tissue_positions.parquet`` (bins).

    Parameters
    ----------
    path
        Folder ``outs`` of Space Ranger, with the counts and ``spatial/``.
    library_id
        Name of the section; by default that in the counts file, else the name of the folder.
    counts_file
        Counts in `path`: an HDF5 file of 10x Genomics, or a folder with ``matrix.mtx.gz``. By default
        ``filtered_feature_bc_matrix.h5``, else the folder ``filtered_feature_bc_matrix``.

    Returns
    -------
    Spots under tissue, with raw counts of gene expression in ``X`` and ``layers["counts"]``, unique gene names, the section
    in ``obs["library_id"]``, positions in full-resolution pixels in ``obsm["spatial"]``, and scale factors and, if there are
    any, images in ``uns["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the folder or a file in it is missing.
    ValueError
        If a spot has no position.

    Examples
    --------
    >>> section = lgdist_scvi.pp.from_visium("outs")
    >>> lgdist_scvi.LGDiST.setup_anndata(section, layer="counts")
    """
    folder = Path(path)
    parts = [name for name in (_BINNED, _SEGMENTED) if (folder / name).is_dir()]
    if parts and not (folder / "spatial" / _POSITIONS[1]).is_file():
        raise FileNotFoundError(
            f"{folder} holds {' and '.join(parts)} of Visium HD; use lgdist_scvi.pp.from_visium_hd({str(folder)!r})."
        )
    counts = _find(folder, _COUNTS if counts_file is None else (counts_file,))
    positions = _find(folder, [f"spatial/{name}" for name in _POSITIONS])
    _require(folder, {counts_file or _COUNTS[0]: counts, f"spatial/{_POSITIONS[1]}": positions}, "outs")
    adata = _read_counts(folder, counts, library_id)
    _add_positions(adata, _read_positions(positions), positions)
    return tidy(_add_images(adata, folder))


def from_visium_hd(
    path: str | Path,
    *,
    bin_um: int | Literal["cells"] = 8,
    library_id: str | None = None,
    counts_file: str | None = None,
) -> AnnData:
    """Read bins or segmented cells of Visium HD from the output folder of Space Ranger 3 or 4.

    Bins of 2 um hold so few counts that bins of 8 um or cells are the better start.

    Parameters
    ----------
    path
        Folder ``outs`` of Space Ranger, with ``binned_outputs`` or, for cells, ``segmented_outputs`` (Space Ranger 4).
    bin_um
        Side of the bins in micrometres (2, 8 or 16, or a side of your own run), or ``"cells"``.
    library_id
        Name of the section; by default that in the counts file, else the name of the folder.
    counts_file
        Counts in the folder of the bins or cells, as in :func:`from_visium`; by default the filtered ones.

    Returns
    -------
    Bins under tissue or cells, as :func:`from_visium` returns spots. The position of a cell is the centroid of its outline.
    ``uns["spatial"][library_id]["scalefactors"]["microns_per_pixel"]`` has the size of a pixel in micrometres.

    Raises
    ------
    FileNotFoundError
        If the folder or a file in it is missing.
    ValueError
        If a bin has no position or a cell no outline, or `bin_um` is no whole number.

    Examples
    --------
    >>> section = lgdist_scvi.pp.from_visium_hd("outs_hd", bin_um=16)
    >>> microns_per_pixel = section.uns["spatial"]["section_1"]["scalefactors"]["microns_per_pixel"]
    >>> lgdist_scvi.LGDiST.setup_anndata(section, layer="counts", max_distance=40 / microns_per_pixel)
    """
    outs = Path(path)
    if bin_um != "cells":
        check_whole(1, bin_um=bin_um)
        name = f"square_{bin_um:03d}um"
        # Some archives hold the folders of the bins without the one around them.
        root = outs / _BINNED if (outs / _BINNED).is_dir() else outs
        if not (root / name).is_dir():
            found = sorted(int(folder.name[7:10]) for folder in root.glob("square_???um"))
            raise FileNotFoundError(
                f"{root} has no bins of {bin_um} um ({name}; found: {found}); correct bin_um=..., or pass the folder "
                "'outs' of Space Ranger."
            )
        return from_visium(root / name, library_id=library_id, counts_file=counts_file)
    folder = outs / _SEGMENTED if (outs / _SEGMENTED).is_dir() else outs
    counts = _find(folder, _CELL_COUNTS if counts_file is None else (counts_file,))
    outlines = _find(folder, [_CELLS])
    _require(
        folder, {counts_file or _CELL_COUNTS[0]: counts, _CELLS: outlines}, f"outs with {_SEGMENTED}, of version 4,"
    )
    adata = _read_counts(folder, counts, library_id)
    _add_positions(adata, _read_centroids(outlines), outlines)
    return tidy(_add_images(adata, folder))


def tidy(adata: AnnData) -> AnnData:
    """Keep the spots under tissue and store counts and section name as :func:`from_visium` describes."""
    adata.var_names_make_unique()
    if "in_tissue" in adata.obs:
        adata = adata[adata.obs["in_tissue"].to_numpy() == 1].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.obs["library_id"] = next(iter(adata.uns["spatial"]))
    return adata


def _find(folder: Path, names: list[str] | tuple[str, ...]) -> Path:
    """First of the named files that exists, or the first named one."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _require(folder: Path, files: dict[str, Path], what: str) -> None:
    missing = [name for name, file in files.items() if not file.exists()]
    if not (folder / _SCALE).is_file():
        missing.append(_SCALE)
    if missing:
        inside = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)} (found: {listing(inside) if inside else 'nothing'}); pass the folder "
            f"{what} of Space Ranger, which contains them, and a file of counts of another name as counts_file=..."
        )


def _read_counts(folder: Path, counts: Path, library_id: str | None) -> AnnData:
    import scanpy
    import squidpy

    own = folder.resolve()
    named = own.parent.name if own.name == "outs" else own.name
    with quiet():
        if counts.is_dir():
            adata = scanpy.read_10x_mtx(counts)
            adata.uns["spatial"] = {library_id or named: {"metadata": {}}}
            return adata
        read = {"counts_file": counts.relative_to(folder).as_posix(), "load_images": False}
        try:
            return squidpy.read.visium(folder, library_id=library_id, **read)
        except KeyError:  # files of other programs do not name the section
            return squidpy.read.visium(folder, library_id=named, **read)


def _read_positions(file: Path) -> pd.DataFrame:
    """Table of positions by barcode; squidpy reads it only beside both images, and not from parquet."""
    if file.suffix == ".parquet":
        table = pd.read_parquet(file)
    else:
        table = pd.read_csv(file, header=None, names=_COLUMNS, dtype=str)
        numbers = table[table["barcode"] != "barcode"]  # with or without a header
        table = numbers.astype(dict.fromkeys(_COLUMNS[1:], float)).astype(dict.fromkeys(_COLUMNS[1:4], int))
    return table.set_index("barcode")


def _read_centroids(file: Path) -> pd.DataFrame:
    """Centroids of the outlines of cells, by their name in the counts."""
    import geopandas

    # Pixels, although GeoJSON means degrees.
    outlines = geopandas.read_file(file).set_crs(None, allow_override=True)
    names = [f"cellid_{number:09d}-1" for number in outlines["cell_id"].astype(int)]
    centroid = outlines.geometry.centroid
    return pd.DataFrame({_COLUMNS[4]: centroid.y.to_numpy(), _COLUMNS[5]: centroid.x.to_numpy()}, index=names)


def _add_positions(adata: AnnData, table: pd.DataFrame, file: Path) -> None:
    if len(lost := adata.obs_names.difference(table.index, sort=False)):
        raise ValueError(
            f"{file} has no position for {len(lost)} of {adata.n_obs} barcodes of the counts: {listing(lost)}; counts and "
            "positions must be of the same run."
        )
    table = table.loc[adata.obs_names]
    adata.obsm["spatial"] = table[[_COLUMNS[5], _COLUMNS[4]]].to_numpy()
    for name in table.columns.intersection(_COLUMNS[1:4]):
        adata.obs[name] = table[name].to_numpy()


def _add_images(adata: AnnData, folder: Path) -> AnnData:
    from PIL import Image

    section = next(iter(adata.uns["spatial"].values()))
    section["scalefactors"] = json.loads((folder / _SCALE).read_bytes())
    section["images"] = {}
    for name in ("hires", "lowres"):
        if (file := folder / "spatial" / f"tissue_{name}_image.png").is_file():
            with Image.open(file) as image:
                section["images"][name] = np.asarray(image)
    return adata
