"""Small output folders of Xenium, CosMx and MERSCOPE, laid out as published, and Stereo-seq bins as spatialdata-io returns them."""

import json
import warnings
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import tifffile
import zarr
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geopandas
    import spatialdata
    from anndata import AnnData
    from shapely import MultiPolygon, box
    from spatialdata.models import PointsModel, TableModel

SIDE = 12
N_CELLS, GENES = SIDE**2, [f"g{i}" for i in range(8)]
CONTROLS = {"xenium": "NegControlProbe_00042", "cosmx": "NegPrb3", "merscope": "Blank-17"}


def cells(platform):
    """Counts with a control in the last column, and positions on a grid of 10 um, in micrometres."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (N_CELLS, len(GENES) + 1))
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    names = [*GENES, CONTROLS[platform]]
    return SimpleNamespace(counts=counts, names=names, positions=10.0 * grid + 5)


def write_xenium(folder):
    """Onboard analysis 2.0, as far as the table, the outlines and the labels need it."""
    folder.mkdir()
    made = cells("xenium")
    (folder / "experiment.xenium").write_text(
        json.dumps({"analysis_sw_version": "xenium-2.0.0.6", "pixel_size": 0.2125})
    )
    digits = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    names = [f"{i + 1:08x}".translate(digits) + "-1" for i in range(N_CELLS)]
    by_gene = np.ascontiguousarray(made.counts)
    with h5py.File(folder / "cell_feature_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        rows, cols = np.nonzero(by_gene)
        matrix["barcodes"], matrix["data"] = np.array(names, "S"), by_gene[rows, cols].astype(np.int32)
        matrix["indices"] = cols.astype(np.int64)
        matrix["indptr"] = np.concatenate([[0], np.cumsum((by_gene > 0).sum(axis=1))]).astype(np.int64)
        matrix["shape"] = np.array(by_gene.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = features["name"] = np.array(made.names, "S")
        kinds = ["Gene Expression"] * len(GENES) + ["Negative Control Probe"]
        features["feature_type"] = np.array(kinds, "S")
        features["genome"] = np.array(["Unknown"] * len(made.names), "S")
    x, y = made.positions.T
    table = {"cell_id": names, "x_centroid": x, "y_centroid": y, "cell_area": 100.0, "nucleus_area": 25.0}
    pd.DataFrame(table).to_parquet(folder / "cells.parquet")
    corners = np.array([[-4.0, -4], [4, -4], [4, 4], [-4, 4], [-4, -4]])
    outline = (made.positions[:, None] + corners).reshape(-1, 2)
    label = np.repeat(np.arange(1, N_CELLS + 1), len(corners))
    outlines = {"cell_id": np.repeat(names, 5), "vertex_x": outline[:, 0], "vertex_y": outline[:, 1], "label_id": label}
    pd.DataFrame(outlines).to_parquet(folder / "cell_boundaries.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w")
        group = zarr.create_group(store)
        ids = np.stack([np.arange(1, N_CELLS + 1), np.ones(N_CELLS)], axis=1).astype(np.uint32)
        group.create_array("cell_id", data=ids)
        summary = np.column_stack([x, y, np.full(N_CELLS, 100.0)])
        group.create_array("cell_summary", data=summary).attrs["column_names"] = ["a", "b", "cell_area"]
        for number in (0, 1):
            group.create_array(f"polygon_sets/{number}/cell_index", data=np.arange(N_CELLS, dtype=np.uint32))
            group.create_array(f"masks/{number}", data=_mask(made.positions, 1 / 0.2125))
        store.close()


def write_cosmx(folder):
    """Two fields of view, left and right, of pixels of 0.5 um; local positions overlap."""
    made, pixel = cells("cosmx"), 0.5
    fov = 1 + (made.positions[:, 0] > 10 * SIDE / 2).astype(int)
    width = 10 * SIDE / 2 / pixel
    place = made.positions / pixel
    local = place - np.stack([(fov - 1) * width, np.zeros(N_CELLS)], axis=1)
    number = np.concatenate([np.arange(1, (fov == f).sum() + 1) for f in (1, 2)])[
        np.argsort(np.argsort(fov, kind="stable"))
    ]
    folder.mkdir()
    keys = pd.DataFrame({"fov": fov, "cell_ID": number})
    pd.concat([keys, pd.DataFrame(made.counts, columns=made.names)], axis=1).to_csv(
        folder / "lung_exprMat_file.csv", index=False
    )
    meta = {
        f"Center{axis}_{kind}_px": value[:, i]
        for kind, value in (("local", local), ("global", place))
        for i, axis in enumerate("XY")
    }
    pd.concat([keys, pd.DataFrame(meta)], axis=1).to_csv(folder / "lung_metadata_file.csv", index=False)
    (folder / "lung_fov_positions_file.csv").write_text("fov,x_global_px,y_global_px\n1,0,0\n2,120,0\n")
    for name in ("CellComposite", "CellLabels"):
        (folder / name).mkdir()
    for f in (1, 2):
        mask = np.zeros((int(10 * SIDE / pixel), int(width)), np.uint16)
        for one, (x, y) in zip(number[fov == f], local[fov == f].astype(int), strict=True):
            mask[y - 4 : y + 4, x - 4 : x + 4] = one
        # The reader turns both upside down.
        tifffile.imwrite(folder / "CellLabels" / f"CellLabels_F{f:03d}.tif", mask[::-1])
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(
            folder / "CellComposite" / f"CellComposite_F{f:03d}.jpg"
        )


def write_merscope(folder):
    """A region of pixels of 0.1 um."""
    made = cells("merscope")
    (folder / "images").mkdir(parents=True)
    np.savetxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv", [[10, 0, 3], [0, 10, 5], [0, 0, 1]])
    names = [f"{i + 10**17}" for i in range(N_CELLS)]
    pd.DataFrame(made.counts, index=pd.Index(names, name="cell"), columns=made.names).to_csv(
        folder / "cell_by_gene.csv"
    )
    meta = pd.DataFrame(made.positions, index=pd.Index(names, name="EntityID"), columns=["center_x", "center_y"])
    meta.assign(volume=500.0).to_csv(folder / "cell_metadata.csv")
    outlines = [MultiPolygon([box(x - 4, y - 4, x + 4, y + 4)]) for x, y in made.positions]
    frame = geopandas.GeoDataFrame({"EntityID": names, "ZIndex": 0, "Geometry": outlines}, geometry="Geometry")
    frame.to_parquet(folder / "cell_boundaries.parquet")


def stereoseq():
    """Bins as points that a table annotates, without positions in the table."""
    made = cells("xenium")
    obs = pd.DataFrame({"instance_id": np.arange(N_CELLS), "region": pd.Categorical(["bin50_genes"] * N_CELLS)})
    obs.index = obs.index.astype(str)
    points = PointsModel.parse(pd.DataFrame(made.positions, columns=["x", "y"]), coordinates={"x": "x", "y": "y"})
    table = AnnData(made.counts[:, :-1].astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    table = TableModel.parse(table, region="bin50_genes", region_key="region", instance_key="instance_id")
    return spatialdata.SpatialData(points={"bin50_genes": points}, tables={"bin50_table": table})


def _mask(positions, scale):
    side = int(np.ceil(10 * SIDE * scale))
    mask = np.zeros((side, side), np.uint32)
    for number, (x, y) in enumerate(positions * scale, start=1):
        mask[int(y - 15) : int(y + 15), int(x - 15) : int(x + 15)] = number
    return mask
