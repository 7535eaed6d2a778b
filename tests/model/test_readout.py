"""What calibration makes of predictions: overdispersion, and the read-out given detection."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from lgdist_scvi.data._batch import Batch
from lgdist_scvi.module._autoencoder import Rates
from lgdist_scvi.module._folds import N_FOLDS, gene_folds
from lgdist_scvi.module._likelihoods import LIKELIHOODS
from lgdist_scvi.module._mixing import Totals
from lgdist_scvi.module._posterior import (
    Prediction,
    _calibrated,
    _decode_samples,
    draw_noise,
    passes,
    posterior,
)
from lgdist_scvi.module._read_outs import READ_OUTS
from lgdist_scvi.train import _calibration


def batch_of(**fields):
    """A minibatch of which the rest is not used."""
    return Batch(**(dict.fromkeys(Batch._fields, torch.zeros(())) | fields))


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


@pytest.mark.parametrize("genes", [torch.arange(23), torch.tensor([7, 4, 0, 19])])
def test_every_entry_is_predicted_once_and_never_from_itself(genes):
    visible = torch.from_numpy(np.random.default_rng(0).random((6, 23)) < 0.7)
    visible[:, 4] = True
    hidden, *left_out = passes(visible, genes)
    assert not hidden.left_out.any() and not hidden.of_visible
    assert hidden.genes.tolist() == [gene for gene in genes.tolist() if not visible[:, gene].all()]
    assert 4 not in hidden.genes
    folds = gene_folds(23)
    assert len(left_out) == len(folds[genes].unique())
    for part in left_out:
        assert part.of_visible and part.left_out[part.genes].all()
        assert len(folds[part.left_out].unique()) == 1 and torch.equal(folds == folds[part.genes[0]], part.left_out)
    assert sorted(torch.cat([part.genes for part in left_out]).tolist()) == sorted(genes.tolist())
    for part in (hidden, *left_out):
        assert torch.equal(genes[part.place], part.genes)
    assert passes(visible, genes, observed=False)[0].genes.tolist() == hidden.genes.tolist()
    assert len(passes(visible, genes, observed=False)) == 1
    assert all(part.of_visible for part in passes(torch.ones_like(visible), genes))
    assert [part.of_visible for part in passes(torch.zeros_like(visible), genes)] == [False]


@pytest.mark.parametrize("loss_kind", ["counts", "log"])
def test_samples_are_averaged(loss_kind):
    samples, genes = torch.from_numpy(np.random.default_rng(0).normal(0.2, 1.0, (4, 5, 7))).abs(), torch.tensor([1, 5])
    module = SimpleNamespace(
        decode=lambda sample, batch, genes: Rates(-2 * sample[:, genes], sample[:, genes]),
        likelihood=LIKELIHOODS[loss_kind](7),
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
DEVIATION = torch.tensor([[0.1, 0.02, 0.3], [0.04, 0.2, 0.06]])
FIELD = torch.tensor([[0.02, 0.01, 0.05], [0.005, 0.004, 0.01]])
WEIGHT = torch.tensor([[0.2], [0.5]])
SIZE, FIELD_SIZE = torch.tensor([2.0, 4.0, 8.0]), torch.tensor([3.0, 1.5, 6.0])
DISAGREEMENT, SHIFT = torch.tensor([0.3, 0.0, 0.8]), torch.tensor(-0.1)


def read(field=None):
    batch = batch_of(counts=COUNTS, depth=DEPTH, observed=~KNOWN)
    weight, shift = (WEIGHT, SHIFT) if field else (torch.zeros(2, 1), torch.tensor(0.0))
    prediction = Prediction(batch, slice(None), NETWORK, DEVIATION, FIELD, weight, DISAGREEMENT, shift, NETWORK)
    module = SimpleNamespace(dispersion=SIZE, field=field, likelihood=LIKELIHOODS["counts"](3))
    given = posterior(prediction, module, known=KNOWN)
    by_default = posterior(prediction._replace(batch=batch._replace(observed=KNOWN)), module)
    assert all(torch.equal(one, other) for one, other in zip(given, by_default, strict=True))
    # Of some genes the same is said.
    genes = torch.tensor([2, 0])
    parts = (part[:, genes] for part in (NETWORK, DEVIATION, FIELD))
    some = Prediction(batch.of_genes(genes), genes, *parts, weight, DISAGREEMENT[genes], shift, NETWORK)
    for one, other in zip(posterior(some, module, known=KNOWN[:, genes]), given, strict=True):
        torch.testing.assert_close(one, other[:, genes])
    return given


def by_integration(rate, size, count, depth):
    """Mean and variance of the rate by Bayes' rule: a gamma prior of this mean and shape, and a Poisson count."""

    x = np.linspace(0, 20 * rate, 200_001)
    weight = stats.gamma(size, scale=rate / size).pdf(x) * stats.poisson(x * depth).pmf(count)
    mean = np.average(x, weights=weight)
    return mean, np.average((x - mean) ** 2, weights=weight)


def test_posterior_is_that_of_bayes():
    given = read()
    mean, around, variance = given.mean, given.variance(torch.zeros(2, 3)), given.variance(DEVIATION)
    assert torch.equal(mean[:, 0], NETWORK[:, 0])  # what is not known leaves the prediction as it is
    for spot, gene in np.argwhere(KNOWN.numpy()):
        rate, size, depth = (float(x) for x in (NETWORK[spot, gene], SIZE[gene], DEPTH[spot]))
        exact = by_integration(rate, size, float(COUNTS[spot, gene]), depth)
        own = rate * depth / (rate * depth + size)
        assert float(mean[spot, gene]) == pytest.approx(exact[0], rel=1e-4)
        assert float(around[spot, gene]) == pytest.approx(exact[1], rel=1e-4)
        assert float(given.own[spot, gene]) == pytest.approx(own)
    # The own count replaces the prediction, and with it what is uncertain of it. The product of two independent factors.
    left = (1 - given.own) ** 2 * (DEVIATION.exp() - 1)
    torch.testing.assert_close((variance + mean**2) / mean**2, (around / mean**2 + 1) * (left + 1))


def test_network_and_factor_model_are_averaged_in_the_log():
    network, mixed = read(), read(SimpleNamespace(dispersion=FIELD_SIZE))
    own = torch.where(KNOWN, FIELD * DEPTH[:, None] / (FIELD * DEPTH[:, None] + FIELD_SIZE), 0)
    factor = FIELD * (1 - own) + own * COUNTS / DEPTH[:, None]
    size = SIZE ** (1 - WEIGHT) * FIELD_SIZE**WEIGHT
    torch.testing.assert_close(mixed.shape, size + COUNTS * KNOWN)
    lost = WEIGHT * (1 - WEIGHT) * DISAGREEMENT / 2
    expected = NETWORK ** (1 - WEIGHT) * FIELD**WEIGHT * (lost + SHIFT).exp() * DEPTH[:, None]
    torch.testing.assert_close(mixed.own, torch.where(KNOWN, expected / (expected + size), 0))
    unlike = (1 - network.own) * (1 - own)  # neither has moved
    mean = network.mean ** (1 - WEIGHT) * factor**WEIGHT * (lost * unlike + (1 - mixed.own) * SHIFT).exp()
    torch.testing.assert_close(mixed.mean, mean)


def test_the_mean_in_the_log_keeps_totals():
    """Also of genes on which network and field disagree, as of rare ones; all genes together have the total that was counted."""
    rng = torch.Generator().manual_seed(0)
    deviation = torch.tensor([0.0, 0.3, 1.2, 1.2])
    network, field = (
        0.01 * (deviation * torch.randn(4000, 4, generator=rng) - deviation.square() / 2).exp() for _ in range(2)
    )
    weight = torch.tensor([[0.2], [0.5]]).repeat(2000, 1)
    observed = torch.rand(4000, 4, generator=rng) < 0.8
    both = (1 - weight) * network + weight * field

    def found(counted):
        totals = Totals(torch.zeros(4))
        for place in (slice(2000), slice(2000, 4000)):  # the same in minibatches
            # What is not visible would be 1000 counts.
            counts = torch.where(observed, counted * 100 * both, 1000.0)[place]
            batch = batch_of(counts=counts, depth=torch.full((2000,), 100.0), observed=observed[place])
            rates = network[place], network[place], field[place]
            nothing = torch.zeros(4), torch.tensor(0.0)
            totals.add(Prediction(batch, slice(None), *rates, weight[place], *nothing, network[place]))
        return totals.disagreement(), totals.shift()

    def rate(disagreement, shift, weight=weight):
        batch = batch_of(counts=both, depth=torch.full((4000,), 100.0))
        return Prediction(batch, slice(None), network, network, field, weight, disagreement, shift, network).rate

    def total(disagreement, shift):
        return (rate(disagreement, shift) * observed).sum(0)

    expected = (both * observed).sum(0)
    assert float(total(torch.zeros(4), torch.tensor(0.0))[2] / expected[2]) < 0.8
    torch.testing.assert_close(total(*found(1.0)), expected, rtol=0.02, atol=0)
    # The logs of two independent rates differ by twice the variance of one.
    torch.testing.assert_close(found(1.0)[0], 2 * deviation.square(), rtol=0.1, atol=1e-3)
    torch.testing.assert_close(total(*found(0.9)), 0.9 * expected, rtol=0.02, atol=0)
    # Where the field has all of the weight nothing is lost, and where nothing was counted nothing is known.
    torch.testing.assert_close(rate(*found(1.0), torch.ones(4000, 1)), field)
    assert float(found(0.0)[1]) == 0


@pytest.mark.parametrize("n_parts", [1, 2])
def test_value_given_detection_is_a_ridge_regression_on_held_out_detections(n_parts):
    """Weighted by gene, leaning towards what either predicts, or a share of both, by as much as ten entries."""
    rng = np.random.default_rng(2)
    shape, depth = (2, 40, 3), rng.uniform(500, 1500, (2, 40))
    counts, held_out = rng.poisson(1.5, shape).astype(float), rng.random(shape) < 0.6
    parts, weight = rng.normal(2, 0.5, (n_parts, *shape)), np.array([0.5, 1.0, 2.0])
    tensors = [torch.from_numpy(array) for array in (counts, held_out, depth)]
    minibatches = [
        (batch_of(counts=torch.tensor(float(i)).expand(40, 3), depth=tensors[2][i]), tensors[0][i], tensors[1][i])
        for i in range(2)
    ]

    def said(part):
        return lambda batch, *_: SimpleNamespace(detected=torch.from_numpy(parts[part][int(batch.counts[0, 0])]))

    module = SimpleNamespace(
        device="cpu",
        condition=SimpleNamespace(visible=lambda batch: "visible"),
        encode=lambda batch, visible: SimpleNamespace(centre=(batch, visible)),
        decode=lambda code, batch: said(0)(batch),
        field=None if n_parts == 1 else said(1),
        share=None,
        gene_weight=torch.from_numpy(weight),
        detected_calibration=torch.full((3,), 7.0),
    )
    _calibration._fit_detected(module, SimpleNamespace(val_dataloader=lambda: minibatches))
    chosen = held_out & (counts > 0)
    x = np.stack([np.ones(shape), *parts], axis=-1)[chosen]
    y = np.log1p(counts / depth[..., None] * 1e4)[chosen]
    rows = np.sqrt(np.broadcast_to(weight, shape)[chosen])[:, None]
    prior = np.array([0, 1.0] if n_parts == 1 else [0, 0.65, 0.35])
    pull = np.diag(np.sqrt([1e-3] + n_parts * [10]))
    fitted = np.linalg.lstsq(np.vstack([rows * x, pull]), np.concatenate([rows[:, 0] * y, pull @ prior]), rcond=None)[0]
    found = module.detected_calibration.numpy()
    np.testing.assert_allclose(found[: n_parts + 1], fitted, rtol=1e-5)
    assert (found[n_parts + 1 :] == 7).all()


@pytest.mark.parametrize("field", [None, lambda *_: SimpleNamespace(detected=torch.tensor([[2.0, 3.0]]))])
def test_value_given_detection_of_network_and_field(field):
    module = SimpleNamespace(detected_calibration=torch.tensor([0.5, 0.7, 0.2]), field=field, share=None)
    batch, network = batch_of(depth=torch.tensor([1e4])), torch.tensor([[-4.0, 5.0]])
    found = _calibrated(module, batch, None, None, network, 3)
    # At least that of one count, which here is log(2).
    expected = torch.tensor([[np.log(2), 4.0 if field is None else 4.6]], dtype=torch.float32)
    torch.testing.assert_close(found, expected)
    rate, _ = READ_OUTS["detected"].read(SimpleNamespace(detected=found), module)
    torch.testing.assert_close(torch.log1p(rate * 1e4), found)


class Held:
    """Held-out entries with the given share of the field, corrected by similar spots as they say or not at all."""

    def __init__(self, best, similar=False):
        rng = np.random.default_rng(0)
        shape = (400, 3)
        network, field, ratio = torch.from_numpy(rng.normal((-6, -6, 0), 0.5, (*shape, 3))).float().unbind(-1)
        depth, held_out = torch.full((400,), 5000.0), torch.from_numpy(rng.random(shape) < 0.5)
        corrected = field + similar * ratio
        log_rate = network + torch.where(held_out, best, 1 - best) * (corrected - network)
        counts = rng.poisson(log_rate.exp() * 5000)
        self.module = SimpleNamespace(
            device="cpu",
            condition=SimpleNamespace(visible=lambda batch: None),
            encode=lambda batch, visible: SimpleNamespace(centre=None),
            decode=lambda code, batch: SimpleNamespace(log_rate=network[batch.rows]),
            share=None,
        )

        class Field:
            mixing, similarity = torch.tensor(0.6), torch.ones(2, 3)

            def __call__(self, batch, visible, share):
                return SimpleNamespace(log_rate=field[batch.rows])

        class Rows(SimpleNamespace):
            def to(self, device):
                return self

        def gather(rows):
            return Rows(depth=depth[rows], rows=rows)

        self.module.field = Field()
        # The first number of spots says it all: with one pseudo-count, all of the ratio but for a hundredth.
        expected = torch.full((400, 3), 100.0)
        sums = torch.stack([torch.stack([expected * ratio.exp(), expected]), torch.zeros(2, 400, 3)])
        self.similar = SimpleNamespace(sums=lambda rows, kind: sums[:, :, rows], pseudo_counts=torch.ones(2, 3))
        view = SimpleNamespace(gather=gather)
        truth = SimpleNamespace(counts=sparse.csr_matrix(counts))
        held = sparse.csr_matrix(held_out.numpy())
        self.data = SimpleNamespace(view=view, truth=truth, held_out=held, val_idx=np.arange(400), n_val=400)


@pytest.mark.parametrize("best", [0.0, 0.35, 1.0])
def test_share_of_the_field_is_what_held_out_counts_ask_for(best):
    """Not what the entries ask for that training has seen."""
    held = Held(best)
    _calibration._fit_shares(held.module, held.data, None)
    assert float(held.module.field.mixing) == pytest.approx(best, abs=0.051)


@pytest.mark.parametrize("similar", [True, False])
def test_similar_spots_weigh_what_held_out_counts_ask_for(similar):
    held = Held(0.5, similar)
    _calibration._fit_shares(held.module, held.data, held.similar)
    found = held.module.field.similarity
    assert (found <= 1).all() if similar else (found == 1e4).all()
    assert torch.equal(found, held.similar.pseudo_counts)
    assert float(held.module.field.mixing) == pytest.approx(0.5, abs=0.101)


def test_field_is_calibrated_without_the_own_counts():
    shape = (4, 23)
    observed = torch.from_numpy(np.random.default_rng(0).random(shape) < 0.7)
    batch = Batch(*(torch.zeros(shape) for _ in Batch._fields))._replace(observed=observed)
    asked = torch.zeros(shape)

    def field(batch, visible, share, genes, part):
        assert not visible[:, genes].any() and not (visible & ~observed).any()
        # Of the other folds all is seen.
        left_out = gene_folds(23) == gene_folds(23)[genes[0]]
        assert part == 1 + gene_folds(23)[genes[0]]
        assert torch.equal(visible, observed & ~left_out)
        asked[:, genes] += 1
        return SimpleNamespace(log_rate=genes.expand(4, -1) + 1.0)

    module = SimpleNamespace(device=torch.device("cpu"), field=field, share=None)
    data = SimpleNamespace(view=SimpleNamespace(gather=lambda rows, folds: batch))
    [(log_rate, seen)] = _calibration._field_blocks(module, data, [np.arange(4)])
    assert (asked == 1).all() and torch.equal(seen.observed, observed)
    torch.testing.assert_close(log_rate, torch.where(observed, torch.arange(1.0, 24.0), 0))


def test_calibration_is_of_the_predictions_asked_for(monkeypatch):
    asked = []

    class Stop(Exception):
        pass

    def predict(module, batch, noise, n_steps):
        asked.append((noise, n_steps))
        raise Stop

    monkeypatch.setattr(_calibration, "predict", predict)
    data = SimpleNamespace(view=SimpleNamespace(gather=lambda rows: None, field=np.zeros((5, 1, 0))))
    for options in ((), ("noise", 7)):
        with pytest.raises(Stop):
            _calibration.fit_calibration(SimpleNamespace(field=None, dispersion=torch.ones(3)), data, 0, *options)
    assert asked == [(None, 1), ("noise", 7)]


@pytest.mark.parametrize("options", [{}, {"n_factors": 0}])
def test_detected_entries_that_were_hidden_are_read_out_without_bias(small, options):
    """Hiding non-zero entries only, as one protocol does, leaves their genes with too few detections."""
    adata = small.tissue(n_spots=600)
    counts = adata.layers["counts"].toarray()
    adata.layers["observed"] = (counts == 0) | (np.random.default_rng(0).random(counts.shape) >= 0.4)
    model = small.fit(small.build(adata, options, observed_layer="observed"), max_epochs=20)
    hidden = ~adata.layers["observed"]
    read_out = model.get_completed_expression(read_out="detected", **(small.READ | {"return_numpy": True}))
    depth = model._view().depth[:, None]
    error = (read_out - np.log1p(counts / depth * 1e4))[hidden]
    # Over 16 seeds the bias is 0.07 of the standard deviation, with a spread of 0.05: the calibration sees some hundred such entries.
    assert abs(error.mean()) < 0.2 * error.std()
    # The rate alone would be too low for them.
    rate = model.get_completed_expression(**(small.READ | {"return_numpy": True}))
    assert (rate - np.log1p(counts / depth * 1e4))[hidden].mean() < -0.1


def test_calibration_on_a_part_of_the_spots_is_settled_by_the_seed(small, monkeypatch):
    monkeypatch.setattr(_calibration, "CALIBRATION_SPOTS", 40)
    one, again = (small.fit(small.build(small.tissue())).module for _ in range(2))
    assert torch.equal(one.dispersion, again.dispersion)
    assert torch.equal(one.field.dispersion, again.field.dispersion)


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
