"""From SpatialData and back, in memory and on disk."""

import errno

import anndata
import numpy as np
import pytest
import spatialdata
from formats import as_spatialdata

from lgdist_scvi import LGDiST, pp


@pytest.fixture
def adata(small):
    adata = small.tissue(n_libraries=2)
    # Every gene has a count in both sections.
    adata.layers["counts"] = adata.layers["counts"].toarray()
    adata.layers["counts"][[0, -1]] += 1
    return adata[:, :30].copy()


@pytest.fixture
def sdata(adata):
    return as_spatialdata(adata)


def model_of(registered, small):
    return small.fit(LGDiST(registered, **small.OPTIONS), max_epochs=1)


def test_embeddings_are_those_of_the_same_spots_in_anndata(adata, sdata):
    pp.image_embeddings(adata, library_key="library_id", silent=True)
    pp.image_embeddings(sdata, silent=True)
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], adata.obsm["X_image"], rtol=1e-4, atol=1e-4)


def test_setup_takes_positions_from_the_shapes(adata, sdata, small):
    registered = LGDiST.setup_spatialdata(sdata, "counts")
    assert registered is sdata["table"]
    np.testing.assert_allclose(registered.obsm["spatial"], adata.obsm["spatial"])
    one = model_of(registered, small).get_completed_expression(**small.READ)
    other = small.fit(small.build(adata, library_key="library_id"), max_epochs=1).get_completed_expression(**small.READ)
    np.testing.assert_array_equal(one, other)


def test_a_refused_setup_leaves_the_table_as_it_was(sdata):
    table = sdata["table"]
    before = {name: list(getattr(table, name)) for name in ("obs", "uns", "obsm", "obsp", "layers")}
    assert "spatial" not in before["obsm"]
    with pytest.raises(ValueError, match="too few|too small"):
        LGDiST.setup_spatialdata(sdata, "counts", n_neighbors=500)
    with pytest.raises(KeyError, match="mine_connectivities"):
        LGDiST.setup_spatialdata(sdata, "counts", neighbors_key="mine")
    assert {name: list(getattr(table, name)) for name in before} == before


def test_completed_layers_survive_on_disk(sdata, small, tmp_path):
    path = tmp_path / "section.zarr"
    sdata.write(path)
    sdata = spatialdata.read_zarr(path)
    pp.image_embeddings(sdata, silent=True)
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts", image_key="X_image"), small)
    counts = sdata["table"].layers["counts"].copy()
    model.add_completed_table(sdata, return_std=True, **small.READ)
    # Once more, as in a notebook that is run again.
    model.add_completed_table(sdata, return_std=True, **small.READ)
    back = spatialdata.read_zarr(path)["table"]
    for name in ("lgdist", "lgdist_imputed", "lgdist_std"):
        np.testing.assert_array_equal(back.layers[name], sdata["table"].layers[name])
    np.testing.assert_array_equal(back.layers["counts"], counts)
    assert back.uns["lgdist"]["package"] == "lgdist-scvi" and "spatialdata_attrs" in back.uns
    np.testing.assert_array_equal(
        back.layers["lgdist"], model.get_completed_expression(return_numpy=True, **small.READ)
    )


def test_standard_deviation_of_an_earlier_completion_does_not_stay_on_disk(sdata, small, tmp_path):
    path = tmp_path / "section.zarr"
    sdata.write(path)
    sdata = spatialdata.read_zarr(path)
    # The model has a copy of the table's rows.
    registered = LGDiST.setup_spatialdata(sdata, "counts", region="spots_section_2")
    model = model_of(registered, small)
    model.add_completed_table(sdata, return_std=True, **small.READ)
    assert "lgdist_std" in spatialdata.read_zarr(path)["table"].layers
    model.add_completed_table(sdata, **small.READ)
    for table in (sdata["table"], spatialdata.read_zarr(path)["table"]):
        assert "lgdist_std" not in table.layers and {"lgdist", "lgdist_imputed"} <= set(table.layers)


def test_one_region_of_two(sdata, small):
    registered = LGDiST.setup_spatialdata(sdata, "counts", region="spots_section_2")
    assert registered is not sdata["table"] and set(registered.obs["region"]) == {"spots_section_2"}
    model = model_of(registered, small)
    model.add_completed_table(sdata, **small.READ)
    table = sdata["table"]
    rows = (table.obs["region"] == "spots_section_2").to_numpy()
    np.testing.assert_array_equal(table.layers["lgdist"][rows], registered.layers["lgdist"])
    assert np.isnan(table.layers["lgdist"][~rows]).all() and not table.layers["lgdist_imputed"][~rows].any()


def test_squidpy_and_spatialdata_plot_draw_the_completed_layer(sdata, small):
    squidpy = pytest.importorskip("squidpy")
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401  adds sdata.pl

    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    model.add_completed_table(sdata, **small.READ)
    gene = sdata["table"].var_names[0]
    _, ax = plt.subplots()
    sdata.pl.render_images("image_section_1").pl.render_shapes(
        "spots_section_1", color=gene, table_name="table", table_layer="lgdist"
    ).pl.show(coordinate_systems="section_1", ax=ax)
    assert ax.collections
    ax = plt.figure().gca()
    squidpy.pl.spatial_scatter(
        sdata["table"],
        color=gene,
        layer="lgdist",
        shape=None,
        library_key="region",
        library_id="spots_section_1",
        ax=ax,
    )
    assert ax.collections
    plt.close("all")


def test_bad_input(sdata, small):
    with pytest.raises(KeyError, match="no 'cells'.*'table'.*table_key"):
        LGDiST.setup_spatialdata(sdata, table_key="cells")
    with pytest.raises(KeyError, match=r"does not annotate \['brain'\].*spots_section_1.*region="):
        LGDiST.setup_spatialdata(sdata, region="brain")
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    del sdata.tables["table"]
    with pytest.raises(KeyError, match="table_key"):
        model.add_completed_table(sdata, **small.READ)


ATTRIBUTES = {
    "text": ("x", ValueError, "annotates no shapes.*has no region, region_key, instance_key.*TableModel"),
    "no column": ({"instance_key": None}, ValueError, "has no instance_key"),
    "no regions": ({"region": None}, ValueError, "has no region"),
    "other column": ({"region_key": "elsewhere"}, KeyError, "has no 'elsewhere', which uns"),
}


@pytest.mark.parametrize(("attributes", "error", "message"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_table_whose_attributes_are_wrong(sdata, attributes, error, message):
    uns = sdata["table"].uns
    uns["spatialdata_attrs"] = attributes if isinstance(attributes, str) else uns["spatialdata_attrs"] | attributes
    with pytest.raises(error, match=message):
        LGDiST.setup_spatialdata(sdata, "counts")


def test_shapes_of_the_same_name(sdata):
    shapes = sdata.shapes["spots_section_1"]
    shapes.index = [1, *shapes.index[1:]]
    shapes.index = [1 if name == 0 else name for name in shapes.index]
    sdata["table"].obs.loc[sdata["table"].obs["instance"] == shapes.index[0], "instance"] = 1
    present = set(shapes.index)
    table = sdata["table"].obs
    table.loc[~table["instance"].isin(present), "instance"] = 1
    with pytest.raises(ValueError, match="spots_section_1'.* shapes with a name that another has"):
        LGDiST.setup_spatialdata(sdata, "counts")


def test_a_table_of_other_spots_is_refused(sdata, small):
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    fewer = sdata["table"][5:].copy()
    del sdata.tables["table"]
    sdata["table"] = fewer
    before = set(fewer.layers)
    with pytest.raises(ValueError, match="not the spots and genes.*table_key"):
        model.add_completed_table(sdata, **small.READ)
    assert set(sdata["table"].layers) == before


@pytest.fixture
def stored(sdata, tmp_path):
    """An object read from its store, and the path."""
    path = tmp_path / "section.zarr"
    sdata.write(path)
    return spatialdata.read_zarr(path), path


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[5:].copy(),
        lambda table: table[::-1].copy(),
        lambda table: table[:, 3:].copy(),
        lambda table: table[:, ::-1].copy(),
    ],
    ids=["fewer spots", "other order of spots", "fewer genes", "other order of genes"],
)
@pytest.mark.filterwarnings("ignore:The table is annotating")
def test_table_that_was_changed_in_memory_is_written_by_names(stored, small, change):
    """To the rows and columns of the store that have its names."""
    sdata, path = stored
    changed = change(sdata["table"])
    del sdata.tables["table"]
    sdata["table"] = changed
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    model.add_completed_table(sdata, **small.READ)
    back = spatialdata.read_zarr(path)["table"]
    np.testing.assert_array_equal(
        back[changed.obs_names, changed.var_names].layers["lgdist"], sdata["table"].layers["lgdist"]
    )
    np.testing.assert_array_equal(
        back[changed.obs_names, changed.var_names].layers["lgdist_imputed"], sdata["table"].layers["lgdist_imputed"]
    )
    there = back.obs_names.isin(changed.obs_names)[:, None] & back.var_names.isin(changed.var_names)
    np.testing.assert_array_equal(np.isfinite(back.layers["lgdist"]), there)
    assert not back.layers["lgdist_imputed"][~there].any()


def rename_spots(table):
    # Without the first five, and numbered anew: names of other spots.
    names = table.obs_names
    changed = table[5:].copy()
    changed.obs_names = names[: changed.n_obs]
    return changed


def rename_genes(table):
    changed = table.copy()
    changed.var_names = [f"new_{name}" for name in table.var_names]
    return changed


@pytest.mark.parametrize("change", [rename_spots, rename_genes])
@pytest.mark.filterwarnings("ignore:The table is annotating")
def test_table_that_is_not_that_of_the_store_is_refused(stored, small, change):
    sdata, path = stored
    changed = change(sdata["table"])
    del sdata.tables["table"]
    sdata["table"] = changed
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    with pytest.raises(ValueError, match="in the store.*write_element"):
        model.add_completed_table(sdata, **small.READ)
    assert "lgdist" not in sdata["table"].layers and "lgdist" not in spatialdata.read_zarr(path)["table"].layers


def test_layer_that_is_only_in_the_store_is_not_replaced(sdata, small, tmp_path):
    path = tmp_path / "section.zarr"
    sdata["table"].layers["lgdist"] = sdata["table"].layers["counts"].copy()
    sdata.write(path)
    sdata = spatialdata.read_zarr(path)
    del sdata["table"].layers["lgdist"]
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    with pytest.raises(ValueError, match=r"layers\['lgdist'\] in the store.*key_added"):
        model.add_completed_table(sdata, **small.READ)
    back = spatialdata.read_zarr(path)["table"]
    np.testing.assert_array_equal(back.layers["lgdist"], back.layers["counts"])
    assert "lgdist" not in sdata["table"].layers
    model.add_completed_table(sdata, key_added="full", **small.READ)
    assert "full" in spatialdata.read_zarr(path)["table"].layers


def test_layer_of_the_whole_table_is_not_replaced_by_that_of_a_region(sdata, small):
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts", region="spots_section_2"), small)
    sdata["table"].layers["lgdist"] = mine = sdata["table"].layers["counts"].copy()
    with pytest.raises(ValueError, match=r"layers\['lgdist'\]"):
        model.add_completed_table(sdata, **small.READ)
    assert sdata["table"].layers["lgdist"] is mine


def test_full_disk_leaves_the_store_as_it_is(stored, small, monkeypatch):
    sdata, path = stored
    model = model_of(LGDiST.setup_spatialdata(sdata, "counts"), small)
    model.add_completed_table(sdata, return_std=True, **small.READ)
    before = spatialdata.read_zarr(path)["table"]
    write, calls = anndata.io.write_elem, []

    def full(group, name, value, **options):
        calls.append(name)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(group, name, value, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(anndata.io, "write_elem", full)
        model.add_completed_table(sdata, scale="counts", **small.READ)
    after = spatialdata.read_zarr(path)["table"]
    assert set(after.layers) == set(before.layers) and after.uns["lgdist"] == before.uns["lgdist"]
    for name in ("lgdist", "lgdist_imputed", "lgdist_std"):
        np.testing.assert_array_equal(after.layers[name], before.layers[name])
    assert sorted(entry.name for entry in path.iterdir() if entry.is_dir()) == ["images", "shapes", "tables"]
