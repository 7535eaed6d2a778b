"""A folder of Space Ranger, made here, as it is read."""

import shutil

import numpy as np
import pytest
from formats import write_space_ranger

from lgdist_scvi import LGDiST, pp
from lgdist_scvi.datasets import simulated_tissue


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
