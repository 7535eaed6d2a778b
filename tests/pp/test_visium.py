"""A folder of Space Ranger, made here, as it is read."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lgdist_scvi import LGDiST, pp
from lgdist_scvi.datasets import simulated_tissue


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


@pytest.fixture(scope="module")
def tissue():
    return simulated_tissue(n_spots=120, n_genes=30)


@pytest.mark.parametrize("header", [True, False])
def test_reading(tissue, tmp_path, header):
    write_space_ranger(tissue, tmp_path / "outs", header=header)
    adata = pp.from_visium(tmp_path / "outs")
    assert adata.shape == (119, 30) and adata.obs_names.equals(tissue.obs_names[:-1])
    assert adata.var_names.is_unique and set(adata.obs["library_id"]) == {"section_1"}
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), tissue.layers["counts"].toarray()[:-1])
    np.testing.assert_array_equal(adata.obsm["spatial"], tissue.obsm["spatial"][:-1].round())
    assert sorted(adata.uns["spatial"]["section_1"]["images"]) == ["hires", "lowres"]


def test_from_the_folder_to_a_model(tissue, tmp_path):
    write_space_ranger(tissue, tmp_path / "outs", header=True)
    adata = pp.from_visium(tmp_path / "outs", library_id="mine")
    pp.image_embeddings(adata, silent=True)
    assert np.isfinite(adata.obsm["X_image"]).all() and adata.uns["X_image"]["images"] == ["uns['spatial'] hires"]
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    LGDiST.setup_anndata(adata, "counts", library_key="library_id", image_key="X_image")
    assert set(adata.obs["library_id"]) == {"mine"}
    adata.write_h5ad(tmp_path / "section.h5ad")


@pytest.mark.parametrize("name", ["filtered_feature_bc_matrix.h5", "spatial/scalefactors_json.json"])
def test_missing_files_are_named(tissue, tmp_path, name):
    write_space_ranger(tissue, tmp_path / "outs", header=True)
    (tmp_path / "outs" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}.*Space Ranger"):
        pp.from_visium(tmp_path / "outs")
    shutil.rmtree(tmp_path / "outs")
    with pytest.raises(FileNotFoundError, match="lacks"):
        pp.from_visium(tmp_path / "outs")
