"""Sections for examples: from a folder, from a download, and the simulation that stands in."""

import numpy as np
import pytest
from scipy.spatial import KDTree

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import example_tissue, simulated_tissue


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("LGDIST_EXAMPLE_DATA", raising=False)


def section(library, seed=0):
    """A section as squidpy reads it: genes twice, spots beside the tissue, nothing but counts in ``X``."""
    adata = simulated_tissue(60, 30, seed=seed)
    adata.obs_names = [f"barcode-{i}" for i in range(60)]
    adata.obs = adata.obs[["array_row", "array_col"]].assign(in_tissue=[1] * 50 + [0] * 10)
    adata.var_names = ["TWICE", "TWICE", *adata.var_names[2:]]
    adata.uns = {"spatial": {library: adata.uns["spatial"]["section_1"]}}
    del adata.layers["counts"], adata.layers["rate"], adata.obsm["X_image"]
    return adata


@pytest.mark.parametrize("named", ["argument", "variable"])
def test_sections_of_a_folder(tmp_path, monkeypatch, named):
    for i in (1, 2):
        section(f"MOB{i}", seed=i).write_h5ad(tmp_path / f"mouse_olfactory_bulb_st_MOB{i}.h5ad")
    if named == "variable":
        monkeypatch.setenv("LGDIST_EXAMPLE_DATA", str(tmp_path))
    adata = example_tissue("bulb", 2, folder=tmp_path if named == "argument" else None)
    assert adata.uns["source"] == "mouse_olfactory_bulb_st_MOB1.h5ad, mouse_olfactory_bulb_st_MOB2.h5ad"
    assert adata.obs["library_id"].unique().tolist() == ["MOB1", "MOB2"] == list(adata.uns["spatial"])
    assert 0 < adata.n_obs <= 100
    assert (np.asarray((adata.layers["counts"] > 0).sum(axis=0)) >= 10).all()
    LGDiST.setup_anndata(adata, layer="counts", library_key="library_id")


def test_folder_must_have_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="lacks crc_visium_CRC16.h5ad"):
        example_tissue("tumour", folder=tmp_path)
    with pytest.raises(ValueError, match="n_sections=2, but there are 1 sections"):
        example_tissue("tumour", 2, folder=tmp_path)


@pytest.mark.parametrize("options", [{"tissue": "liver"}, {"tissue": "bulb", "n_sections": 0}])
def test_arguments(options):
    with pytest.raises(ValueError, match="liver|n_sections"):
        example_tissue(**options)


def test_download(monkeypatch):
    asked = []
    monkeypatch.setattr("squidpy.datasets.visium", lambda sample: asked.append(sample) or section(sample))
    adata = example_tissue("cortex", 3)
    assert asked == ["V1_Human_Brain_Section_1", "V1_Human_Brain_Section_2"] == list(adata.uns["spatial"])
    assert adata.uns["source"].startswith("10x Genomics, V1_Human_Brain_Section_1, 10x")


@pytest.mark.parametrize("error", [OSError("no network"), ExceptionGroup("failed", [OSError("no network")])])
def test_simulation_stands_in_and_says_so(monkeypatch, error):
    def visium(sample):
        raise error

    monkeypatch.setattr("squidpy.datasets.visium", visium)
    with pytest.warns(UserWarning, match=r"downloaded \(no network\), so the tissue is SIMULATED"):
        adata = example_tissue("cortex", 2)
    assert adata.uns["source"] == "lgdist_scvi.datasets.simulated_tissue"
    assert adata.obs["library_id"].nunique() == 2


@pytest.mark.parametrize(("tissue", "microns", "pitch"), [("cells", 1.0, 12.0), ("bins", 0.5, 10.0)])
def test_cells_and_bins_are_simulated_in_their_own_unit(tissue, microns, pitch):
    with pytest.warns(UserWarning, match=r"squidpy has none\), so the tissue is SIMULATED"):
        adata = example_tissue(tissue)
    (entry,) = adata.uns["spatial"].values()
    assert entry == {"scalefactors": {"microns_per_pixel": microns}}
    nearest = KDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=2)[0][:, 1]
    assert np.median(nearest) == pytest.approx(pitch)
    assert np.median(np.asarray(adata.X.sum(axis=1))) < 250


@pytest.mark.parametrize("tissue", ["cortex", "bulb", "tumour", "cells", "bins"])
def test_real_sections(real_data, tissue):
    adata = example_tissue(tissue, folder=real_data)
    LGDiST.setup_anndata(adata, layer="counts", library_key="library_id")
    (entry,) = adata.uns["spatial"].values()
    assert entry["images"] if tissue in ("cortex", "bulb", "tumour") else entry["scalefactors"]
