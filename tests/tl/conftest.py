"""A tissue whose truth is known, thinned, and layers that are right or broken in one way."""

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi.datasets import simulated_tissue
from lgdist_scvi.tl import prepare_audit


@pytest.fixture(scope="session")
def tissue():
    """Poisson counts around rates that vary between single spots, too, gene by gene; some genes of which few molecules would be there are absent from the first layer."""
    tissue = simulated_tissue(600, 200, seed=1)
    rate = tissue.layers["rate"].astype(float)
    depth = np.asarray(tissue.X.sum(axis=1))
    layer = (tissue.obs["domain"] == "layer 1").to_numpy()
    there = (rate * depth)[layer].sum(axis=0)
    rate[np.ix_(layer, (there > 10) & (there < 80))] = 0
    smooth = rate / rate.sum(axis=1, keepdims=True)
    rate *= np.random.default_rng(1).gamma(4, 1 / 4, rate.shape)
    rate /= rate.sum(axis=1, keepdims=True)
    tissue.X = sparse.csr_matrix(np.random.default_rng(0).poisson(rate * depth).astype(np.float32))
    tissue.layers = {"counts": tissue.X.copy(), "rate": rate, "smooth": smooth}
    return tissue


@pytest.fixture(scope="session")
def prepared(tissue):
    """Half of the molecules, and the true rates of all genes and decoys in ``layers["truth"]``.

    Without what varies between single spots in ``layers["smooth"]``.
    """
    prepared = prepare_audit(tissue, "counts")
    prepared.uns = {}
    decoy = prepared.var["decoy"].to_numpy()
    both = prepared.layers["counts"] + prepared.layers["held_out"]
    share = np.asarray(both[:, decoy].sum(axis=0)).ravel() / tissue.X.sum()
    for name, layer in (("truth", "rate"), ("smooth", "smooth")):
        rate = np.hstack([tissue.layers[layer], np.tile(share, (tissue.n_obs, 1))])
        prepared.layers[name] = rate / rate.sum(axis=1, keepdims=True)
    return prepared
