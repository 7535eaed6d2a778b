"""From counts of each technology to a completed, clustered and saved section."""

import anndata as ad
import numpy as np
import pytest
from formats import write_visium_hd
from scipy import sparse

from lgdist_scvi import LGDiST, pp, tl
from lgdist_scvi.datasets import simulated_tissue

MOST_SPOTS = 1200
# Files of the sparse sections, with the least share of spots that a gene must be seen in.
SECTIONS = {
    "mouse_cerebellum_slideseq_Puck_180819_11": {"min_fraction": 0.005},
    "mouse_brain_stereoseq_SS200000135TL_D1_crop_bin10": {"min_fraction": 0.01},
    "mouse_brain_xenium": {},
    "mouse_motor_cortex_merfish": {},
    "mouse_visual_cortex_starmap_BY3_1k": {},
    "mouse_ss_cortex_osmfish": {},
}


def crop(adata):
    """The spots nearest to the middle of a section."""
    place = adata.obsm["spatial"]
    middle = np.median(place, axis=0)
    nearest = np.sort(np.argsort(((place - middle) ** 2).sum(axis=1), kind="stable")[:MOST_SPOTS])
    return adata[nearest].copy()


def complete(small, adata, folder, **selection):
    """What a user does, with a small model; checks the saved section."""
    panel = pp.select_genes(adata, n_target=16, n_context=48, **selection)
    assert panel.n_obs == adata.n_obs
    LGDiST.setup_anndata(panel, size_factor_key="total_counts", target_genes_key="target_gene")
    model = small.fit(LGDiST(panel, **small.OPTIONS), batch_size=128)
    model.add_completed_layer(**small.READ)
    model.add_latent_representation()
    tl.domains(panel, n_domains=4, n_seeds=1)
    model.save(folder / "model")
    panel.write_h5ad(folder / "completed.h5ad")
    saved = ad.read_h5ad(folder / "completed.h5ad")
    values = saved.layers["lgdist"]
    assert values.shape == panel.shape and np.isfinite(values).all() and (values >= 0).all()
    # The expectation differs between spots, and has the profile that was counted.
    assert values.std(axis=0).min() > 0
    measured = sparse.csr_matrix(saved.X).toarray() / saved.obs["total_counts"].to_numpy()[:, None]
    expected = np.expm1(values)
    assert np.corrcoef(expected.mean(axis=0), measured.mean(axis=0))[0, 1] > 0.9
    assert saved.obs["domain"].cat.categories.size == 4 and saved.obs["domain"].notna().all()
    # Counts are as they were.
    assert (saved.X != adata[:, saved.var_names].X).nnz == 0
    again = LGDiST.load(folder / "model", adata=saved)
    np.testing.assert_allclose(
        again.get_completed_expression(**small.READ, return_numpy=True), values, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.filterwarnings("ignore:Only .* genes are detected:UserWarning")
def test_from_a_section_to_a_saved_one(small, real_data, tmp_path, name):
    adata = crop(ad.read_h5ad(real_data / "sparse" / f"{name}.h5ad"))
    complete(small, adata, tmp_path, **SECTIONS[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Only .* genes are detected:UserWarning")
@pytest.mark.parametrize("bin_um", [8, "cells"])
def test_from_a_folder_of_visium_hd_to_a_saved_section(small, tmp_path, bin_um):
    write_visium_hd(simulated_tissue(n_spots=600, n_genes=80, depth=100), tmp_path)
    adata = pp.from_visium_hd(tmp_path, bin_um=bin_um)
    complete(small, adata, tmp_path, layer="counts", library_key="library_id")


def test_bins_of_few_counts_are_kept_and_completed(small):
    bins = simulated_tissue(n_spots=300, n_genes=40, depth=5)
    rates, few = bins.layers["rate"], np.asarray(bins.layers["counts"].sum(axis=1)).ravel() < 10
    assert few.mean() > 0.8
    panel = pp.select_genes(bins, layer="counts", n_target=10, n_context=10, min_fraction=0.01)
    assert panel.n_obs == 300
    model = small.fit(small.build(panel, size_factor_key="total_counts"))
    values = model.get_completed_expression(**small.READ, scale="rate", return_numpy=True)
    assert values.shape == panel.shape and np.isfinite(values).all()
    # A bin of five molecules is told by its surroundings, too: closer to the truth than its own counts, scaled by its depth.
    places = bins.var_names.get_indexer(panel.var_names)
    truth = rates[:, places] / rates.mean(axis=0)[places]
    own = panel.layers["counts"].toarray() / panel.obs["total_counts"].to_numpy()[:, None]

    def error(shares):
        return np.abs(shares / shares.mean(axis=0) - truth)[few].mean()

    assert error(values) < 0.7 * error(own)
