"""Reading of Space Ranger output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

_FILES = ("spatial/scalefactors_json.json", "spatial/tissue_hires_image.png", "spatial/tissue_lowres_image.png")


def from_visium(
    path: str | Path, *, library_id: str | None = None, counts_file: str = "filtered_feature_bc_matrix.h5"
) -> AnnData:
    """Read the output folder of Space Ranger, through :func:`squidpy.read.visium`.

    Parameters
    ----------
    path
        Folder ``outs`` of Space Ranger, with `counts_file` and ``spatial/``.
    library_id
        Name of the section; by default that in the counts file.
    counts_file
        Counts, in 10x HDF5 format.

    Returns
    -------
    Spots under tissue, with raw counts in ``X`` and ``layers["counts"]``, unique gene names, the section in
    ``obs["library_id"]``, positions in full-resolution pixels in ``obsm["spatial"]``, and images and scale factors in
    ``uns["spatial"]``.

    Raises
    ------
    FileNotFoundError
        If the folder or a file in it is missing.

    Examples
    --------
    >>> section = lgdist_scvi.pp.from_visium("outs")
    >>> lgdist_scvi.LGDiST.setup_anndata(section, layer="counts")
    """
    import squidpy

    folder = Path(path)
    missing = [name for name in (counts_file, *_FILES) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; pass the folder 'outs' of Space Ranger, which contains them."
        )
    return tidy(squidpy.read.visium(folder, counts_file=counts_file, library_id=library_id))


def tidy(adata: AnnData) -> AnnData:
    """Keep the spots under tissue and store counts and section name as :func:`from_visium` describes."""
    adata.var_names_make_unique()
    if "in_tissue" in adata.obs:
        adata = adata[adata.obs["in_tissue"].to_numpy() == 1].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.obs["library_id"] = next(iter(adata.uns["spatial"]))
    return adata
