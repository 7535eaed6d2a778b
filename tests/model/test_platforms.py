"""Cells and bins of every platform, from its folder to a registered table."""

import warnings

import numpy as np
import pytest
import vendors

from lgdist_scvi import LGDiST, pp

READ = {"transcripts": False}
XENIUM = {"morphology_mip": False, "morphology_focus": False, "nucleus_boundaries": False, "gex_only": False}
READERS = {"xenium": READ | XENIUM, "cosmx": READ, "merscope": READ | {"mosaic_images": False}}


def read(platform, folder):
    readers = pytest.importorskip("spatialdata_io", reason="spatialdata-io is not installed")
    getattr(vendors, f"write_{platform}")(folder / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(readers, platform)(folder / "run", **READERS[platform])


def edges_between(table, groups):
    row, col = table.obsp["lgdist_connectivities"].nonzero()
    groups = np.asarray(groups)
    return int((groups[row] != groups[col]).sum())


@pytest.mark.parametrize("platform", ["xenium", "merscope"])
def test_positions_of_the_table_are_micrometres(platform, tmp_path):
    sdata = read(platform, tmp_path)
    table = LGDiST.setup_spatialdata(sdata, max_distance=12)
    np.testing.assert_allclose(table.obsm["spatial"], vendors.cells(platform).positions)
    # The neighbours on the grid of 10 um, without the diagonals.
    np.testing.assert_allclose(table.obsp["lgdist_distances"].data, 10)
    panel = pp.select_genes(sdata, n_target=2, n_context=2)
    assert panel.n_vars == 4 and panel.obsm["spatial"].shape == (vendors.N_CELLS, 2)


@pytest.mark.parametrize(("platform", "scale", "shift"), [("xenium", 1 / 0.2125, 0), ("merscope", 10, [3, 5])])
def test_positions_in_a_coordinate_system(platform, scale, shift, tmp_path):
    sdata = read(platform, tmp_path)
    expected = vendors.cells(platform).positions * scale + shift
    table = LGDiST.setup_spatialdata(sdata, coordinate_system="global")
    np.testing.assert_allclose(table.obsm["spatial_global"], expected, atol=1.5)  # pixels of a label
    np.testing.assert_allclose(table.obsm["spatial"], vendors.cells(platform).positions)
    with pytest.raises(KeyError, match=r"not in the coordinate system 'slide' \(found: \['global'\]\)"):
        LGDiST.setup_spatialdata(sdata, coordinate_system="slide")


def test_labels_give_positions_where_the_table_has_none(tmp_path):
    sdata = read("xenium", tmp_path)
    del sdata["table"].obsm["spatial"]
    table = LGDiST.setup_spatialdata(sdata)
    np.testing.assert_allclose(table.obsm["spatial"], vendors.cells("xenium").positions / 0.2125, atol=1.5)


def test_fields_of_view_become_one_section(tmp_path):
    sdata = read("cosmx", tmp_path)
    fov = sdata["table"].obs["fov"].astype(str)
    with pytest.warns(UserWarning, match="2 regions .* placed in the coordinate system 'global'.*fields of view"):
        table = LGDiST.setup_spatialdata(sdata)
    assert edges_between(table, fov) == 0
    table = LGDiST.setup_spatialdata(sdata, coordinate_system="global")
    # In pixels of 0.5 um.
    np.testing.assert_allclose(table.obsm["spatial_global"], vendors.cells("cosmx").positions / 0.5, atol=1.5)
    assert edges_between(table, fov) > vendors.SIDE


def test_bins_as_points():
    sdata = vendors.stereoseq()
    table = LGDiST.setup_spatialdata(sdata, table_key="bin50_table")
    np.testing.assert_array_equal(table.obsm["spatial"], vendors.cells("xenium").positions)
    del sdata.points["bin50_genes"]
    del table.obsm["spatial"]
    with pytest.raises(KeyError, match="has no 'bin50_genes', a region of the table.*add its"):
        LGDiST.setup_spatialdata(sdata, table_key="bin50_table")
