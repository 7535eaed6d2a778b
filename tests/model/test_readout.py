"""What calibration makes of predictions: overdispersion, and the read-out given detection."""

import numpy as np
import pytest
import torch

from lgdist_scvi.data._view import Batch
from lgdist_scvi.model._readout import _Moments


def test_moments_find_the_overdispersion():
    rng = np.random.default_rng(0)
    size, rate, depth = 4.0, np.linspace(1e-3, 2e-2, 12), rng.uniform(500, 2000, (3000, 1))
    counts = rng.poisson(rng.gamma(size, rate * depth / size))
    moments = _Moments(torch.ones(12))
    unused = dict.fromkeys(set(Batch._fields) - {"counts", "observed", "depth"})
    for part in np.array_split(np.arange(3000), 3):
        batch = Batch(
            counts=torch.from_numpy(counts[part]).float(),
            observed=torch.ones(1000, 12, dtype=torch.bool),
            depth=torch.from_numpy(depth[part, 0]).float(),
            **unused,
        )
        moments.add(torch.from_numpy(rate).float().expand(1000, 12), batch)
    np.testing.assert_allclose(moments.size().numpy(), size, rtol=0.25)
    # What is not observed does not count.
    unseen = batch._replace(counts=batch.counts + 100, observed=batch.observed & False)
    before = moments.size()
    moments.add(torch.from_numpy(rate).float().expand(1000, 12), unseen)
    assert torch.equal(moments.size(), before)


@pytest.mark.parametrize("options", [{}, {"n_factors": 0}])
def test_detected_entries_that_were_hidden_are_read_out_without_bias(small, options):
    """Hiding non-zero entries only, as one protocol does, leaves their genes with too few detections."""
    adata = small.tissue(n_spots=600)
    counts = adata.layers["counts"].toarray()
    adata.layers["observed"] = (counts == 0) | (np.random.default_rng(0).random(counts.shape) >= 0.3)
    model = small.fit(small.build(adata, options, observed_layer="observed"), max_epochs=20)
    hidden = ~adata.layers["observed"]
    read_out = model.get_completed_expression(read_out="detected", **(small.READ | {"return_numpy": True}))
    depth = model._view().depth[:, None]
    error = (read_out - np.log1p(counts / depth * 1e4))[hidden]
    assert abs(error.mean()) < 0.04 * error.std()
    # The rate alone would be too low for them.
    rate = model.get_completed_expression(**(small.READ | {"return_numpy": True}))
    assert (rate - np.log1p(counts / depth * 1e4))[hidden].mean() < -0.1


def test_calibration_undoes_a_shift(small, monkeypatch):
    adata = small.hide(small.tissue())
    model = small.build(adata, observed_layer="observed")
    decode = type(model.module).decode

    def shifted(self, code, batch, *genes):
        rates = decode(self, code, batch, *genes)
        return rates._replace(detected=rates.detected - 1)

    plain = small.fit(small.build(adata.copy(), observed_layer="observed"))
    monkeypatch.setattr(type(model.module), "decode", shifted)
    small.fit(model)
    one, other = (m.module.detected_calibration for m in (plain, model))
    # What is taken from one prediction is given back by the constant.
    torch.testing.assert_close(one[1:], other[1:], atol=0.05, rtol=0.05)
    assert 0.5 * one[1] < other[0] - one[0] < 1.5 * one[1]
