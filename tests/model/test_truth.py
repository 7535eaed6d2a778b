"""Means of regions and tests against the truth: those of one simulated tissue, and of one training."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse, stats

from lgdist_scvi import LGDiST
from lgdist_scvi.data._areas import disjoint_patches
from lgdist_scvi.datasets import simulated_tissue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def known(small):
    """A model of Poisson counts, half of whose genes have no pattern; the field does the work, so the network is small."""
    adata, random = simulated_tissue(600, 200, depth=1500, seed=5), np.random.default_rng(5)
    rate, depth = np.asarray(adata.layers["rate"], dtype=float), random.gamma(4, 400, (600, 1)) + 100
    flat = random.random(200) < 0.5
    rate[:, flat] = rate[:, flat].mean(axis=0)
    counts = random.poisson(rate * depth).astype(np.float32)
    adata.layers["counts"] = sparse.csr_matrix(counts)
    # As if the panel were half of what is counted.
    adata.obs["depth"] = 2 * depth[:, 0]
    with pytest.warns(UserWarning, match="no count for"):
        LGDiST.setup_anndata(adata, layer="counts", size_factor_key="depth")
    model = small.fit(LGDiST(adata, **(small.OPTIONS | {"n_factors": 14})))
    return SimpleNamespace(model=model, counts=counts, rate=rate / 2, flat=flat, depth=2 * depth[:, 0], random=random)


@pytest.mark.parametrize("size", [7, 50])
def test_intervals_cover_the_true_means(known, size):
    adata = known.model.adata
    patches = disjoint_patches(adata.obsm["spatial"], np.zeros(600, dtype=np.intp), size, known.random)
    number = np.full(600, -1)
    number[patches.indices] = np.repeat(np.arange(patches.shape[0]), size)
    adata.obs["patch"] = [None if one < 0 else f"{one:03d}" for one in number]
    found = known.model.get_region_expression(groupby="patch", silent=True)
    true = (patches @ (known.rate * known.depth[:, None])) / (patches @ known.depth)[:, None] * 1e4
    covered = ((found.layers["low"] < true) & (true < found.layers["high"])).mean()
    assert 0.88 < covered < 0.99
    often = known.counts.mean(axis=0) > 0.1
    errors = [
        np.square((values - true) / true.mean(axis=0))[:, often].mean()
        for values in (found.X, found.layers["raw"], found.layers["completed"])
    ]
    assert errors[0] < 1.02 * min(errors[1:])


def test_level_and_power_in_small_contiguous_groups(known):
    """Genes without a pattern have the right level, and of those with one more are found than by counts alone."""
    below, false, called, found = [], 0, 0, {"guided": 0, "counts": 0}
    position = known.model.adata.obsm["spatial"] / known.model.adata.obsm["spatial"].max(axis=0)
    for corner in ((0, 0), (1, 0), (0, 1)):
        near = np.argsort(np.square(position - corner).sum(axis=1))[:25]
        opposite = np.argsort(np.square(position - (0.5, 0.5)).sum(axis=1))[:25]
        table = known.model.differential_expression(idx1=near, idx2=opposite, silent=True)
        table = table.loc[known.model.adata.var_names]
        below.append((table["pvals"] < 0.05)[known.flat].mean())
        calls = table["pvals_adj"] < 0.05
        false, called = false + calls[known.flat].sum(), called + calls.sum()
        found["guided"] += calls[~known.flat].sum()
        found["counts"] += (stats.false_discovery_control(table["pvals"]) < 0.05)[~known.flat].sum()
    assert 0.02 < np.mean(below) < 0.08
    assert false <= 0.1 * called
    assert found["guided"] > 1.2 * found["counts"]
