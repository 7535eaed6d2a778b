"""Sections as other programs hand them over."""

import json
import warnings

import h5py
import numpy as np
import pandas as pd
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale


def write_space_ranger(adata, folder, *, header):
    """Counts, positions, scale factors and images as Space Ranger writes them; the last spot lies beside the tissue."""
    (folder / "spatial").mkdir(parents=True)
    counts = adata.layers["counts"].tocsr()
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = adata.obs_names.to_numpy(dtype="S")
        matrix["data"] = counts.data.astype(np.int32)
        matrix["indices"], matrix["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
        matrix["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:05d}" for i in range(adata.n_vars)], dtype="S")
        features["name"] = np.array(["TWICE", "TWICE", *adata.var_names[2:]], dtype="S")
        features["feature_type"] = np.full(adata.n_vars, b"Gene Expression")
        features["genome"] = np.full(adata.n_vars, b"GRCh38")
        file.attrs["library_ids"] = np.array([b"section_1"])
    positions = pd.DataFrame(
        {
            "in_tissue": [1] * (adata.n_obs - 1) + [0],
            "array_row": adata.obs["array_row"].to_numpy(),
            "array_col": adata.obs["array_col"].to_numpy(),
            "pxl_row_in_fullres": adata.obsm["spatial"][:, 1].round().astype(int),
            "pxl_col_in_fullres": adata.obsm["spatial"][:, 0].round().astype(int),
        },
        index=pd.Index(adata.obs_names, name="barcode"),
    )
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    positions.sample(frac=1, random_state=0).to_csv(folder / "spatial" / name, header=header)
    section = adata.uns["spatial"]["section_1"]
    image = Image.fromarray(section["images"]["hires"])
    image.save(folder / "spatial" / "tissue_hires_image.png")
    image.resize((image.width // 2, image.height // 2)).save(folder / "spatial" / "tissue_lowres_image.png")
    scale = section["scalefactors"]["tissue_hires_scalef"]
    factors = {**section["scalefactors"], "tissue_lowres_scalef": scale / 2}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps({k: float(v) for k, v in factors.items()}))


def as_spatialdata(adata):
    """Two sections with an image each, whose spots are in another order than the rows of the table."""
    adata, images, shapes = adata.copy(), {}, {}
    rng = np.random.default_rng(0)
    adata.obs["region"] = [f"spots_{name}" for name in adata.obs["library_id"]]
    instance = np.zeros(adata.n_obs, dtype=np.int64)
    for name, section in adata.uns["spatial"].items():
        rows = np.flatnonzero(adata.obs["library_id"] == name)
        order = rng.permutation(len(rows))
        instance[rows[order]] = np.arange(len(rows))
        pixel = 1 / section["scalefactors"]["tissue_hires_scalef"]
        images[f"image_{name}"] = Image2DModel.parse(
            np.moveaxis(section["images"]["hires"], 2, 0),
            dims=("c", "y", "x"),
            transformations={name: Scale([pixel, pixel], axes=("x", "y"))},
        )
        shapes[f"spots_{name}"] = ShapesModel.parse(
            adata.obsm["spatial"][rows[order]],
            geometry=0,
            radius=section["scalefactors"]["spot_diameter_fullres"] / 2,
            transformations={name: Identity()},
        )
    adata.obs["instance"] = instance
    adata.obs["region"] = adata.obs["region"].astype("category")
    del adata.uns["spatial"], adata.obsm["spatial"], adata.obsm["X_image"]
    table = TableModel.parse(adata, region=list(shapes), region_key="region", instance_key="instance")
    return spatialdata.SpatialData(images=images, shapes=shapes, tables={"table": table})
