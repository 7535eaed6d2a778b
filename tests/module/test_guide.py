"""What is expected of a gene in spots whose own counts of it are not looked at."""

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST
from lgdist_scvi.module._field_codes import solve_field
from lgdist_scvi.module._folds import gene_folds
from lgdist_scvi.module._guide import Guide

GENE = 5
OUTSIDE, INSIDE, ONE = np.arange(100), np.arange(100, 150), np.array([120])


@pytest.fixture(scope="module")
def model(small):
    adata = small.tissue()
    adata.obs["total"] = np.asarray(adata.layers["counts"].sum(axis=1)).ravel() + 3000.0
    return small.fit(small.build(adata, size_factor_key="total"))


def rates(model, counts, rows=OUTSIDE, read=INSIDE):
    adata = model.adata.copy()
    # The depth holds all counts, these included.
    adata.obs["total"] += (counts - adata.layers["counts"].toarray()).sum(axis=1)
    adata.layers["counts"] = sparse.csr_matrix(counts)
    _, view = model._trained_view(adata, diffusion=False)
    solve_field(model.module, view, folded=view.n_spots)
    return Guide(model.module, view, rows).rates(read)


@pytest.mark.filterwarnings("ignore")
def test_counts_of_the_gene_in_other_spots_are_not_known(model):
    counts = model.adata.layers["counts"].toarray()
    other = counts.copy()
    other[INSIDE, GENE] = np.random.default_rng(0).permutation(other[INSIDE, GENE] * 7 + 3)
    before, after = rates(model, counts, read=ONE), rates(model, other, read=ONE)
    assert after[GENE] == pytest.approx(before[GENE], rel=1e-5)
    # Genes of other folds do take notice.
    folds = gene_folds(counts.shape[1]).numpy()
    assert (np.abs(after / before - 1) > 1e-3)[folds != folds[GENE]].mean() > 0.5
    # And so does the gene itself of its counts in the spots that are learnt from.
    other = counts.copy()
    other[OUTSIDE, GENE] *= 3
    assert rates(model, other, read=ONE)[GENE] > before[GENE] * 1.5


@pytest.mark.filterwarnings("ignore")
def test_expected_levels_are_right_where_they_were_learnt(model):
    counts = model.adata.layers["counts"].toarray()
    found = rates(model, counts, OUTSIDE, OUTSIDE)
    share = counts[OUTSIDE].sum(axis=0) / model.adata.obs["total"].to_numpy()[OUTSIDE].sum()
    # The most overdispersed gene is off most, since spots that are rich in it count for little; the others are near.
    overdispersed = model.module.field.dispersion.numpy() < 1
    assert overdispersed.sum() < 5
    np.testing.assert_allclose(found[overdispersed], share[overdispersed], rtol=0.2)
    np.testing.assert_allclose(found[~overdispersed], share[~overdispersed], rtol=0.08)


@pytest.mark.slow
def test_differences_are_foreseen(small):
    from lgdist_scvi.datasets import simulated_tissue

    adata = simulated_tissue(400, 100, depth=2000, seed=3)
    LGDiST.setup_anndata(adata, layer="counts")
    model = small.fit(LGDiST(adata, **(small.OPTIONS | {"n_factors": 20})))
    _, view = model._trained_view(None, diffusion=False)
    solve_field(model.module, view, folded=view.n_spots)
    rate, position = np.asarray(adata.layers["rate"], dtype=float), adata.obsm["spatial"][:, 0]
    groups = [np.argsort(position)[:40], np.argsort(position)[-40:]]
    guide = Guide(model.module, view, np.setdiff1d(np.arange(400), np.concatenate(groups)))
    expected = np.log(guide.rates(groups[0]) / guide.rates(groups[1]))
    depth = view.depth[:, None]
    means = [(rate * depth)[rows].sum(axis=0) / depth[rows].sum() for rows in groups]
    truth = np.log(means[0] / means[1])
    assert np.corrcoef(expected, truth)[0, 1] > 0.6
