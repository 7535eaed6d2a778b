"""A tissue whose truth is known, thinned, and layers that are right or broken in one way."""

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.tl import prepare_audit


@pytest.fixture(scope="session")
def tissue():
    """Poisson counts around the true rates; every fifth gene is absent from the first layer."""
    tissue = simulated_tissue(600, 200, seed=1)
    rate = tissue.layers["rate"].astype(float)
    rate[np.ix_(tissue.obs["domain"] == "layer 1", np.arange(200) % 5 == 0)] = 0
    rate /= rate.sum(axis=1, keepdims=True)
    depth = np.asarray(tissue.X.sum(axis=1))
    tissue.X = sparse.csr_matrix(np.random.default_rng(0).poisson(rate * depth).astype(np.float32))
    tissue.layers = {"counts": tissue.X.copy(), "rate": rate}
    return tissue


@pytest.fixture(scope="session")
def prepared(tissue):
    """Half of the molecules, and the true rates of all genes and decoys in ``layers["truth"]``."""
    prepared = prepare_audit(tissue, "counts")
    prepared.uns = {}
    decoy = prepared.var["decoy"].to_numpy()
    both = prepared.layers["counts"] + prepared.layers["held_out"]
    share = np.asarray(both[:, decoy].sum(axis=0)).ravel() / tissue.X.sum()
    truth = np.hstack([tissue.layers["rate"], np.tile(share, (tissue.n_obs, 1))])
    prepared.layers["truth"] = truth / truth.sum(axis=1, keepdims=True)
    return prepared
