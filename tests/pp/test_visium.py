"""Folders of Space Ranger 1 to 4, made here, as they are read."""

import re
import shutil

import numpy as np
import pytest
from formats import write_space_ranger, write_visium_hd

from lgdist_scvi import LGDiST, pp
from lgdist_scvi.datasets import simulated_tissue


@pytest.fixture(scope="module")
def tissue():
    return simulated_tissue(n_spots=120, n_genes=30)


def check(adata, tissue, section="section_1", images=("hires", "lowres")):
    assert adata.shape == (119, 30) and adata.obs_names.equals(tissue.obs_names[:-1])
    assert adata.var_names.is_unique and set(adata.obs["library_id"]) == {section}
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), tissue.layers["counts"].toarray()[:-1])
    np.testing.assert_array_equal(adata.obsm["spatial"], tissue.obsm["spatial"][:-1].round())
    assert {"array_row", "array_col", "in_tissue"} <= set(adata.obs)
    assert sorted(adata.uns["spatial"][section]["images"]) == sorted(images)
    assert "spot_diameter_fullres" in adata.uns["spatial"][section]["scalefactors"]


@pytest.mark.parametrize("positions", ["list", "csv", "parquet"])
@pytest.mark.parametrize("counts", ["h5", "mtx"])
def test_layouts(tissue, tmp_path, positions, counts):
    folder = tmp_path / "mouse" / "outs"
    write_space_ranger(tissue, folder, positions=positions, counts=counts)
    # Only HDF5 files name the section.
    check(pp.from_visium(folder), tissue, section="section_1" if counts == "h5" else "mouse")


@pytest.mark.parametrize("images", [(), ("lowres",)])
def test_images_are_optional(tissue, tmp_path, images):
    write_space_ranger(tissue, tmp_path / "outs", images=images)
    check(pp.from_visium(tmp_path / "outs"), tissue, images=images)


@pytest.mark.parametrize("counts", ["h5", "mtx"])
def test_raw_counts(tissue, tmp_path, counts):
    write_space_ranger(tissue, tmp_path / "outs", kind="raw", counts=counts)
    name = "raw_feature_bc_matrix" + (".h5" if counts == "h5" else "")
    check(pp.from_visium(tmp_path / "outs", counts_file=name, library_id="mine"), tissue, section="mine")
    with pytest.raises(FileNotFoundError, match=rf"lacks filtered_.*found: {name!r}.*counts_file="):
        pp.from_visium(tmp_path / "outs")


def test_from_the_folder_to_a_model(tissue, tmp_path):
    write_space_ranger(tissue, tmp_path / "outs")
    adata = pp.from_visium(tmp_path / "outs", library_id="mine")
    pp.image_embeddings(adata, silent=True)
    assert np.isfinite(adata.obsm["X_image"]).all() and adata.uns["X_image"]["images"] == ["uns['spatial'] hires"]
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    LGDiST.setup_anndata(adata, "counts", library_key="library_id", image_key="X_image")
    assert set(adata.obs["library_id"]) == {"mine"}
    adata.write_h5ad(tmp_path / "section.h5ad")


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix.h5"),
        ("spatial/tissue_positions.csv", "spatial/tissue_positions.csv"),
        ("spatial/scalefactors_json.json", "spatial/scalefactors_json.json"),
    ],
)
def test_missing_files_are_named(tissue, tmp_path, file, named):
    write_space_ranger(tissue, tmp_path / "outs")
    (tmp_path / "outs" / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {named} .*Space Ranger"):
        pp.from_visium(tmp_path / "outs")
    shutil.rmtree(tmp_path / "outs")
    with pytest.raises(FileNotFoundError, match="lacks.*found: nothing"):
        pp.from_visium(tmp_path / "outs")


def test_positions_of_another_run_are_refused(tissue, tmp_path):
    write_space_ranger(tissue, tmp_path / "outs")
    file = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    file.write_text(re.sub("(?m)^section_1_spot_7,.*\n", "", file.read_text()))
    with pytest.raises(ValueError, match="no position for 1 of 120 barcodes.*'section_1_spot_7'.*same run"):
        pp.from_visium(tmp_path / "outs")


def test_bins_and_cells_of_visium_hd(tissue, tmp_path):
    write_visium_hd(tissue, tmp_path)
    for adata in (pp.from_visium_hd(tmp_path), pp.from_visium_hd(tmp_path / "binned_outputs", bin_um=16)):
        check(adata, tissue)
    cells = pp.from_visium_hd(tmp_path, bin_um="cells", library_id="mine")
    assert list(cells.obs_names[:2]) == ["cellid_000000001-1", "cellid_000000002-1"] and cells.n_obs == 120
    np.testing.assert_allclose(cells.obsm["spatial"], tissue.obsm["spatial"])
    np.testing.assert_array_equal(cells.layers["counts"].toarray(), tissue.layers["counts"].toarray())
    assert cells.uns["spatial"]["mine"]["scalefactors"]["microns_per_pixel"] == 1 / 16
    assert set(cells.obs["library_id"]) == {"mine"}


def test_what_is_missing_of_visium_hd_is_named(tissue, tmp_path):
    write_visium_hd(tissue, tmp_path, bins=(8,))
    with pytest.raises(FileNotFoundError, match=r"no bins of 2 um \(square_002um; found: \[8\]\); correct bin_um"):
        pp.from_visium_hd(tmp_path, bin_um=2)
    with pytest.raises(
        FileNotFoundError, match="binned_outputs and segmented_outputs of Visium HD; use .*from_visium_hd"
    ):
        pp.from_visium(tmp_path)
    (tmp_path / "segmented_outputs" / "cell_segmentations.geojson").unlink()
    with pytest.raises(FileNotFoundError, match="lacks cell_segmentations.geojson .*version 4"):
        pp.from_visium_hd(tmp_path, bin_um="cells")
