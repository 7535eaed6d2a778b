"""Sections as other programs hand them over."""

import gzip
import json
import warnings

import anndata
import geopandas
import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import mmwrite
from shapely import box

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale


def write_space_ranger(adata, folder, *, positions="csv", images=("hires", "lowres"), counts="h5", kind="filtered"):
    """Counts, positions, scale factors and images as Space Ranger writes them; the last spot lies beside the tissue.

    `positions` is "list" (Space Ranger 1), "csv" (2 and later) or "parquet" (bins); `counts` "h5" or "mtx".
    """
    (folder / "spatial").mkdir(parents=True)
    _write_counts(adata, folder / f"{kind}_feature_bc_matrix", counts)
    table = pd.DataFrame(
        {
            "in_tissue": [1] * (adata.n_obs - 1) + [0],
            "array_row": adata.obs["array_row"].to_numpy(),
            "array_col": adata.obs["array_col"].to_numpy(),
            "pxl_row_in_fullres": adata.obsm["spatial"][:, 1].round().astype(int),
            "pxl_col_in_fullres": adata.obsm["spatial"][:, 0].round().astype(int),
        },
        index=pd.Index(adata.obs_names, name="barcode"),
    )
    table = table.sample(frac=1, random_state=0)
    if positions == "parquet":
        table.reset_index().to_parquet(folder / "spatial" / "tissue_positions.parquet")
    else:
        name = {"csv": "tissue_positions.csv", "list": "tissue_positions_list.csv"}[positions]
        table.to_csv(folder / "spatial" / name, header=positions == "csv")
    section = adata.uns["spatial"]["section_1"]
    image = Image.fromarray(section["images"]["hires"])
    for name, fraction in (("hires", 1), ("lowres", 2)):
        if name in images:
            size = (image.width // fraction, image.height // fraction)
            image.resize(size).save(folder / "spatial" / f"tissue_{name}_image.png")
    scale = section["scalefactors"]["tissue_hires_scalef"]
    factors = {**section["scalefactors"], "tissue_lowres_scalef": scale / 2}
    if positions == "parquet":
        factors["microns_per_pixel"] = 1 / 16
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps({k: float(v) for k, v in factors.items()}))


def _write_counts(adata, path, kind):
    counts = adata.layers["counts"].tocsr()
    ids, names = [f"ENSG{i:05d}" for i in range(adata.n_vars)], ["TWICE", "TWICE", *adata.var_names[2:]]
    if kind == "mtx":
        path.mkdir(parents=True)
        with gzip.open(path / "matrix.mtx.gz", "wb") as file:
            mmwrite(file, counts.T.astype(np.int64))
        features = pd.DataFrame({"id": ids, "name": names, "type": "Gene Expression"})
        features.to_csv(path / "features.tsv.gz", sep="\t", header=False, index=False)
        adata.obs_names.to_frame().to_csv(path / "barcodes.tsv.gz", sep="\t", header=False, index=False)
        return
    with h5py.File(path.with_name(f"{path.name}.h5"), "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = adata.obs_names.to_numpy(dtype="S")
        matrix["data"] = counts.data.astype(np.int32)
        matrix["indices"], matrix["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
        matrix["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["id"], features["name"] = np.array(ids, dtype="S"), np.array(names, dtype="S")
        features["feature_type"] = np.full(adata.n_vars, b"Gene Expression")
        features["genome"] = np.full(adata.n_vars, b"GRCh38")
        file.attrs["library_ids"] = np.array([b"section_1"])


def write_visium_hd(adata, outs, *, bins=(8, 16)):
    """Bins and segmented cells as Space Ranger 4 writes them; every bin and cell is a spot of `adata`."""
    for side in bins:
        write_space_ranger(adata, outs / "binned_outputs" / f"square_{side:03d}um", positions="parquet")
    cells = adata.copy()
    cells.obs_names = [f"cellid_{number + 1:09d}-1" for number in range(adata.n_obs)]
    folder = outs / "segmented_outputs"
    (folder / "spatial").mkdir(parents=True)
    _write_counts(cells, folder / "filtered_feature_cell_matrix", "h5")
    source = outs / "binned_outputs" / f"square_{bins[0]:03d}um" / "spatial" / "scalefactors_json.json"
    (folder / "spatial" / source.name).write_text(source.read_text())
    square = np.array([[-2.0, -1], [2, -1], [2, 1], [-2, 1], [-2, -1]])
    features = [
        {
            "type": "Feature",
            "properties": {"cell_id": number + 1},
            "geometry": {"type": "Polygon", "coordinates": [(square + place).tolist()]},
        }
        for number, place in enumerate(adata.obsm["spatial"])
    ]
    content = {"type": "FeatureCollection", "features": features[::-1]}
    (folder / "cell_segmentations.geojson").write_text(json.dumps(content))


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


def tiled_slide(n=6, *, side=10, overlap=0, corner=(0, 0), seed=0):
    """A square of tiles row by row as LazySlide writes them, and their features, which are in a table that annotates the outlines."""
    numbers = np.arange(n * n)
    ends = [(corner[0] + side * (i % n), corner[1] + side * (i // n)) for i in numbers]
    outlines = [box(x, y, x + side * (1 + overlap), y + side * (1 + overlap)) for x, y in ends]
    shapes = geopandas.GeoDataFrame({"tile_id": numbers, "geometry": outlines})
    features = np.random.default_rng(seed).normal(size=(n * n, 4)).astype(np.float32)
    obs = pd.DataFrame({"tile_id": numbers, "library_id": pd.Categorical(["tiles"] * n * n)}, index=numbers.astype(str))
    table = TableModel.parse(
        anndata.AnnData(features, obs=obs), region="tiles", region_key="library_id", instance_key="tile_id"
    )
    slide = spatialdata.SpatialData(shapes={"tiles": ShapesModel.parse(shapes)}, tables={"uni2_tiles": table})
    return slide, features
