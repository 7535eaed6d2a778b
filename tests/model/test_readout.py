"""What calibration makes of predictions: overdispersion, and the read-out given detection."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lgdist_scvi.data._view import Batch
from lgdist_scvi.model import _readout
from lgdist_scvi.model._readout import (
    N_FOLDS,
    Prediction,
    _decode_samples,
    _Moments,
    _passes,
    draw_noise,
    gene_folds,
    posterior,
)
from lgdist_scvi.module._autoencoder import Rates


@pytest.mark.parametrize("n_samples", [1, 2, 5, 6])
def test_noise_comes_in_pairs_that_the_seed_settles(n_samples):
    noise = draw_noise(n_samples, 7, seed=3)
    assert noise.shape == (1, n_samples, 7)
    half = n_samples // 2 * 2
    assert torch.equal(noise[:, 0:half:2], -noise[:, 1:half:2])
    assert len(torch.unique(noise.abs(), dim=1)[0]) == (n_samples + 1) // 2
    torch.manual_seed(1)
    assert torch.equal(draw_noise(n_samples, 7, seed=3), noise)
    assert not torch.equal(draw_noise(n_samples, 7, seed=4), noise)


def test_folds_share_the_genes_out():
    folds = gene_folds(23)
    assert sorted(torch.bincount(folds).tolist()) == [4, 4, 5, 5, 5] and len(torch.bincount(folds)) == N_FOLDS
    assert torch.equal(folds, gene_folds(23))
    assert not torch.equal(folds, torch.sort(folds).values)


def test_every_entry_is_predicted_once_and_never_from_itself():
    visible = torch.from_numpy(np.random.default_rng(0).random((6, 23)) < 0.7)
    visible[:, 4] = True
    (hidden, rest, genes), *left_out = _passes(visible, observed=True)
    assert torch.equal(hidden, ~visible) and torch.equal(rest, visible)
    assert genes.tolist() == [gene for gene in range(23) if not visible[:, gene].all()] and 4 not in genes
    assert len(left_out) == N_FOLDS
    assert torch.equal(sum(wanted.int() for wanted, _, _ in left_out), visible.int())
    for fold, (wanted, rest, genes) in enumerate(left_out):
        assert torch.equal(rest, visible & ~wanted)
        assert genes.tolist() == (gene_folds(23) == fold).nonzero()[:, 0].tolist()
        assert torch.equal(wanted[:, genes], visible[:, genes])
    assert len(list(_passes(visible, observed=False))) == 1
    assert len(list(_passes(torch.ones_like(visible), observed=True))) == N_FOLDS
    assert len(list(_passes(torch.zeros_like(visible), observed=True))) == 1


@pytest.mark.parametrize("loss_kind", ["counts", "log"])
def test_samples_are_averaged(loss_kind):
    samples, genes = torch.from_numpy(np.random.default_rng(0).normal(0.2, 1.0, (4, 5, 7))).abs(), torch.tensor([1, 5])
    module = SimpleNamespace(
        decode=lambda sample, batch, genes: Rates(-2 * sample[:, genes], sample[:, genes]), loss_kind=loss_kind
    )
    mean, variance, detected = _decode_samples(module, None, samples, genes)
    chosen = samples[:, :, genes]
    rates = torch.exp(-2 * chosen) if loss_kind == "counts" else chosen.expm1() / 10_000
    torch.testing.assert_close(mean, rates.mean(dim=1))
    torch.testing.assert_close(variance, rates.var(dim=1, unbiased=False))
    torch.testing.assert_close(detected, chosen.mean(dim=1))


# Spots of unlike depth; the first entry of each is not known.
DEPTH, COUNTS = torch.tensor([50.0, 2000.0]), torch.tensor([[7.0, 0.0, 3.0], [90.0, 0.0, 41.0]])
KNOWN = torch.tensor([[False, True, True], [False, True, True]])
NETWORK = torch.tensor([[0.01, 0.03, 0.02], [0.01, 0.002, 0.03]])
SPREAD = torch.tensor([[1e-5, 2e-5, 3e-5], [4e-6, 5e-7, 6e-6]])
FACTOR = torch.tensor([[0.02, 0.01, 0.05], [0.005, 0.004, 0.01]])
WEIGHT = torch.tensor([[0.2], [0.5]])
SIZE, FACTOR_SIZE = torch.tensor([2.0, 4.0, 8.0]), torch.tensor([3.0, 1.5, 6.0])


def read(factors=None):
    unused = dict.fromkeys(set(Batch._fields) - {"counts", "depth"})
    batch = Batch(counts=COUNTS, depth=DEPTH, **unused)
    prediction = Prediction(NETWORK, SPREAD, FACTOR, WEIGHT, NETWORK)
    return posterior(prediction, batch, KNOWN, SimpleNamespace(dispersion=SIZE, factors=factors))


def by_integration(rate, size, count, depth):
    """Mean and variance of the rate by Bayes' rule: a gamma prior of this mean and shape, and a Poisson count."""

    x = np.linspace(0, 20 * rate, 200_001)
    weight = stats.gamma(size, scale=rate / size).pdf(x) * stats.poisson(x * depth).pmf(count)
    mean = np.average(x, weights=weight)
    return mean, np.average((x - mean) ** 2, weights=weight)


def test_posterior_is_that_of_bayes():
    mean, variance = read()
    assert torch.equal(mean[:, 0], NETWORK[:, 0])  # what is not known leaves the prediction as it is
    torch.testing.assert_close(variance[:, 0], SPREAD[:, 0] + NETWORK[:, 0] ** 2 / SIZE[0])
    for spot, gene in np.argwhere(KNOWN.numpy()):
        rate, size, depth = (float(x) for x in (NETWORK[spot, gene], SIZE[gene], DEPTH[spot]))
        exact = by_integration(rate, size, float(COUNTS[spot, gene]), depth)
        own = rate * depth / (rate * depth + size)
        assert float(mean[spot, gene]) == pytest.approx(exact[0], rel=1e-4)
        # The own count replaces the prediction, and with it the spread of the prediction.
        assert float(variance[spot, gene]) == pytest.approx(
            exact[1] + (1 - own) ** 2 * float(SPREAD[spot, gene]), rel=1e-4
        )


def test_network_and_factor_model_are_averaged_in_the_log():
    network, variance = read()
    mean, mixed_variance = read(SimpleNamespace(dispersion=FACTOR_SIZE))
    own = torch.where(KNOWN, FACTOR * DEPTH[:, None] / (FACTOR * DEPTH[:, None] + FACTOR_SIZE), 0)
    factor = FACTOR * (1 - own) + own * COUNTS / DEPTH[:, None]
    torch.testing.assert_close(mean, network ** (1 - WEIGHT) * factor**WEIGHT)
    torch.testing.assert_close(mixed_variance, variance * (mean / network) ** 2)


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


def test_calibration_on_a_part_of_the_spots_is_settled_by_the_seed(small, monkeypatch):
    monkeypatch.setattr(_readout, "CALIBRATION_SPOTS", 40)
    one, again = (small.fit(small.build(small.tissue())).module for _ in range(2))
    assert torch.equal(one.dispersion, again.dispersion)
    assert torch.equal(one.factors.dispersion, again.factors.dispersion)


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
