"""Molecules that are held out, and decoy genes."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from lgdist_scvi.tl import prepare_audit


def test_molecules_are_parted(tissue, prepared):
    real = ~prepared.var["decoy"].to_numpy()
    given, held_out = (prepared.layers[name][:, real] for name in ("counts", "held_out"))
    assert ((given + held_out) != tissue.layers["counts"]).nnz == 0
    assert (prepared.X != prepared.layers["counts"]).nnz == 0 and prepared.X is not prepared.layers["counts"]
    assert given.sum() / tissue.X.sum() == pytest.approx(0.5, abs=0.005)
    assert list(prepared.obs_names) == list(tissue.obs_names)
    assert list(prepared.var_names[real]) == list(tissue.var_names)
    for column, layer in (("depth", "counts"), ("held_out_depth", "held_out")):
        np.testing.assert_array_equal(prepared.obs[column], np.asarray(prepared.layers[layer].sum(axis=1)).ravel())
    np.testing.assert_array_equal(prepared.obsm["spatial"], tissue.obsm["spatial"])
    assert list(prepared.obsm) == ["spatial"]  # others may be made from all counts


def test_the_two_parts_are_independent(tissue):
    parts = prepare_audit(tissue, "counts", fraction=0.2, seed=3)
    real = ~parts.var["decoy"].to_numpy()
    given, held_out = (parts.layers[name][:, real].toarray() for name in ("counts", "held_out"))
    assert given.sum() / tissue.X.sum() == pytest.approx(0.2, abs=0.005)
    depth = np.asarray(tissue.X.sum(axis=1))
    mean = tissue.layers["rate"] * depth
    errors = (given - 0.2 * mean) * (held_out - 0.8 * mean)
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(errors.size)


def test_decoys_have_the_abundance_of_genes_and_no_pattern(tissue):
    prepared = prepare_audit(tissue, "counts", n_decoys=100)
    decoy = prepared.var["decoy"].to_numpy()
    assert decoy.sum() == 100 and not decoy[:200].any()
    full = (prepared.layers["counts"] + prepared.layers["held_out"]).toarray()
    totals = full[:, :200].sum(axis=0)
    gap = np.abs(np.log(full[:, decoy].sum(axis=0)[:, None] / totals[totals > 0])).min(axis=1)
    assert gap.max() < 0.3
    # Counts around depth times share: Pearson's statistic is about the number of spots.
    mean = np.outer(full[:, :200].sum(axis=1), full[:, decoy].sum(axis=0)) / tissue.X.sum()
    assert ((full[:, decoy] - mean) ** 2 / mean).mean() == pytest.approx(1, abs=0.02)
    inner = (tissue.obs["domain"] == "layer 1").to_numpy()
    upper = full[inner][:, decoy].sum(axis=0)
    p = stats.binom.sf(upper, full[:, decoy].sum(axis=0), mean[inner].sum() / mean.sum())
    assert 0.3 < p.mean() < 0.7 and (p < 0.001).sum() <= 1


def test_seed_and_input_stay(tissue):
    before = tissue.copy()
    one, same, other = (prepare_audit(tissue, "counts", seed=seed) for seed in (0, 0, 1))
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0
    assert (before.layers["counts"] != tissue.layers["counts"]).nnz == 0 and list(before.obs) == list(tissue.obs)


def test_format_does_not_matter(tissue):
    dense = tissue.copy()
    dense.X = tissue.X.toarray().astype(int)
    columns = tissue.copy()
    columns.X = sparse.csc_matrix(tissue.X)
    expected = prepare_audit(tissue)
    for other in (dense, columns):
        assert (prepare_audit(other).X != expected.X).nnz == 0


def test_depth_of_a_panel(tissue):
    panel = tissue.copy()
    panel.obs["total_counts"] = np.asarray(panel.X.sum(axis=1)).ravel() + 1000
    prepared = prepare_audit(panel, size_factor_key="total_counts", n_decoys=0)
    depth = prepared.obs["depth"]
    assert (depth + prepared.obs["held_out_depth"] == panel.obs["total_counts"]).all()
    outside = depth - np.asarray(prepared.X.sum(axis=1)).ravel()
    assert outside.mean() == pytest.approx(500, rel=0.01) and outside.std() == pytest.approx(np.sqrt(250), rel=0.1)


def test_annotation_of_genes_and_of_the_data(tissue):
    marked = tissue.copy()
    marked.var["target_gene"] = True
    marked.var["length"] = 100
    marked.uns["lgdist"] = {"package": "lgdist-scvi"}
    marked.uns["_scvi_uuid"] = "of another AnnData"
    prepared = prepare_audit(marked, n_decoys=3)
    assert prepared.var["target_gene"].tolist() == [True] * 200 + [False] * 3
    assert prepared.var["target_gene"].dtype == bool and prepared.var["decoy"].dtype == bool
    assert prepared.var["length"].isna().sum() == 3
    assert isinstance(prepared.var["marker_of"].dtype, pd.CategoricalDtype)
    assert set(prepared.uns) == {"spatial"}
    assert prepared.uns["spatial"] is not marked.uns["spatial"]


def test_a_gene_that_is_hardly_counted_is_no_decoy(tissue):
    few = tissue[:, :2].copy()
    few.X = sparse.csr_matrix(np.column_stack([np.eye(600)[0], np.ones(600)]).astype(np.float32))
    prepared = prepare_audit(few, n_decoys=30)
    both = (prepared.X + prepared.layers["held_out"]).toarray()[:, 2:]
    assert both.sum(axis=0).min() > 400


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_fraction_must_be_between_0_and_1(tissue, fraction):
    with pytest.raises(ValueError, match=r"fraction=.* must be between 0 and 1"):
        prepare_audit(tissue, fraction=fraction)


def test_bad_input_is_refused(tissue, prepared, tmp_path):
    with pytest.raises(KeyError, match=r"layers\['raw'\] is missing"):
        prepare_audit(tissue, "raw")
    with pytest.raises(ValueError, match="n_decoys=-1 must be a whole number"):
        prepare_audit(tissue, n_decoys=-1)
    with pytest.raises(MemoryError, match=r"n_decoys=1000000000000 decoys would take .*fifty are enough"):
        prepare_audit(tissue, n_decoys=10**12)
    with pytest.raises(ValueError, match=r"var\['decoy'\] exists: adata was prepared"):
        prepare_audit(prepared)
    with pytest.raises(KeyError, match=r"obsm\['positions'\] \(positions\) is missing"):
        prepare_audit(tissue, spatial_key="positions")
    with pytest.raises(ValueError, match="not whole numbers"):
        prepare_audit(tissue, "rate")
    deep = tissue.copy()
    deep.obs["depth"] = 1.0
    with pytest.raises(ValueError, match=r"obs\['depth'\] exists and would be replaced"):
        prepare_audit(deep)
    deep.obs = deep.obs.rename(columns={"depth": "lib"})
    with pytest.raises(ValueError, match=r"size_factor_key\) is less than the counts"):
        prepare_audit(deep, size_factor_key="lib")
    named = tissue.copy()
    named.var_names = ["decoy_2", *tissue.var_names[1:]]
    with pytest.raises(ValueError, match=r"names of decoys, 'decoy_2'; rename"):
        prepare_audit(named)
    tissue.copy().write_h5ad(tmp_path / "tissue.h5ad")
    with pytest.raises(ValueError, match="backed by a file"):
        prepare_audit(anndata.read_h5ad(tmp_path / "tissue.h5ad", backed="r"))
