"""What the encoder may see, and what the losses are."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.data._batch import Batch
from lgdist_scvi.data._pooling import N_POOLS
from lgdist_scvi.module._autoencoder import Rates
from lgdist_scvi.module._blocks import Dropout
from lgdist_scvi.module._lgdist import LGDiSTModule
from lgdist_scvi.module._likelihoods import CountLikelihood
from lgdist_scvi.module._moments import Moments
from lgdist_scvi.module._normalisation import log_normalise
from lgdist_scvi.module._posterior import predict

B, K, G, E, D = 7, 5, 12, 3, 8
SIZE = {
    "n_latent": D,
    "n_hidden": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_denoiser_hidden": 32,
    "n_denoiser_layers": 2,
    "n_diffusion_steps": 50,
}


def make_batch(seed=0):
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=rng)

    counts = torch.poisson(4 * uniform(B, G), generator=rng)
    observed = uniform(B, G) < 0.8
    near = torch.poisson(4 * uniform(B, K, G), generator=rng)
    near_observed = uniform(B, K, G) < 0.8
    mask = uniform(B, K) < 0.7
    mask[:, 0], mask[3] = True, False
    return Batch(
        counts=counts * observed,
        observed=observed,
        depth=(counts * observed).sum(1) + 100,
        neighbor_counts=near * near_observed * mask[..., None],
        neighbor_observed=near_observed,
        neighbor_depth=near.sum(-1) + 100,
        neighbor_mask=mask,
        neighbor_distance=uniform(B, K),
        pooled=uniform(B, N_POOLS, G) - 0.5,
        image=uniform(B, 1 + K, E),
        image_mask=torch.cat([torch.ones(B, 1, dtype=torch.bool), mask], dim=1),
        field=torch.zeros(B, 6, 20),
        draws=torch.zeros(B, 0, 0),
        spread=torch.zeros(B, 0),
        similar=torch.zeros(B, 0, 0),
        clean=torch.zeros(B, 0),
    )


def make_module(**options):
    torch.manual_seed(0)
    module = LGDiSTModule(n_genes=G, n_image=E, **(SIZE | options)).eval()
    module.share.copy_(torch.linspace(1, 5, G) / (10 * G))
    return module


@pytest.fixture(scope="module")
def module():
    return make_module()


@pytest.fixture
def batch():
    return make_batch()


def centre(module, batch, visible=None, **options):
    with torch.no_grad():
        return module.encode(batch, batch.observed if visible is None else visible, **options).centre


def test_masked_counts_do_not_reach_the_code(module, batch):
    visible = batch.observed & (torch.rand(B, G) < 0.6)
    masked = batch.observed & ~visible
    more = torch.where(masked, batch.counts + torch.randint(1, 90, (B, G)), batch.counts)
    # The depth counts them.
    other = batch._replace(counts=more, depth=batch.depth + (more - batch.counts).sum(1))
    for codes in zip(module.encode(batch, visible), module.encode(other, visible), strict=True):
        torch.testing.assert_close(*codes, rtol=0, atol=1e-5)
    assert not torch.allclose(centre(module, batch), centre(module, other))


def test_unobserved_counts_are_multiplied_away(module, batch):
    """A second barrier: the view holds none of them."""
    junk = torch.where(batch.observed, batch.counts, 77.0)
    near = torch.where(batch.neighbor_observed, batch.neighbor_counts, 77.0)
    other = batch._replace(counts=junk, neighbor_counts=near)
    torch.testing.assert_close(centre(module, other), centre(module, batch))


def test_nothing_visible(module, batch):
    nothing = torch.zeros_like(batch.observed)
    # All of the depth is hidden with the counts.
    one = batch._replace(depth=batch.counts.sum(1))
    other = batch._replace(
        counts=batch.counts.flip(0), observed=batch.observed.flip(0), depth=batch.counts.flip(0).sum(1)
    )
    assert torch.isfinite(centre(module, one, nothing)).all()
    torch.testing.assert_close(centre(module, other, nothing), centre(module, one, nothing))


def test_missing_neighbors_do_not_matter(module, batch):
    missing = ~batch.neighbor_mask
    other = batch._replace(
        neighbor_counts=torch.where(missing[..., None], 50.0, batch.neighbor_counts),
        neighbor_depth=torch.where(missing, 9.0, batch.neighbor_depth),
        neighbor_distance=torch.where(missing, 7.0, batch.neighbor_distance),
        neighbor_observed=batch.neighbor_observed ^ missing[..., None],
    )
    torch.testing.assert_close(centre(module, other), centre(module, batch), rtol=0, atol=1e-6)
    # As if the places were not there at all.
    first = batch.neighbor_mask[:, :1].all(dim=1)
    cut = batch._replace(
        **{name: getattr(batch, name)[:, :1] for name in Batch._fields if name.startswith("neighbor")},
        **{name: getattr(batch, name)[:, :2] for name in ("image", "image_mask")},
    )
    alone = batch._replace(neighbor_mask=batch.neighbor_mask & (torch.arange(K) == 0))
    torch.testing.assert_close(centre(module, alone)[first], centre(module, cut)[first], rtol=0, atol=1e-6)


def test_order_of_neighbors_does_not_matter(module, batch):
    order, first = torch.randperm(K), torch.zeros(1, dtype=torch.long)
    other = batch._replace(
        **{name: getattr(batch, name)[:, order] for name in Batch._fields if name.startswith("neighbor")},
        **{name: getattr(batch, name)[:, torch.cat([first, 1 + order])] for name in ("image", "image_mask")},
    )
    torch.testing.assert_close(centre(module, other), centre(module, batch), rtol=0, atol=1e-6)


def test_neighbors_matter(module, batch):
    here = batch.neighbor_mask.any(dim=1)
    code = centre(module, batch)
    for change in (
        {"neighbor_counts": batch.neighbor_counts + 5 * batch.neighbor_observed},
        {"neighbor_distance": batch.neighbor_distance + 1},
        {"pooled": batch.pooled + 1},
        {"image": batch.image + 1},
    ):
        moved = (centre(module, batch._replace(**change)) - code).abs().amax(dim=1)
        assert (moved[here] > 1e-6).all(), next(iter(change))


def test_without_the_image(module, batch):
    other = batch._replace(image=batch.image + 5)
    half = torch.arange(B) % 2 == 0
    code, same = (centre(module, images.without_images(half)) for images in (batch, other))
    torch.testing.assert_close(code[half], same[half], rtol=0, atol=0)
    torch.testing.assert_close(code[~half], centre(module, batch)[~half])
    assert (code[~half] - same[~half]).abs().amax(dim=1).min() > 1e-6


def test_an_image_of_a_neighbor_matters_and_one_that_is_missing_does_not(module, batch):
    code = centre(module, batch)
    image = batch.image.clone()
    image[:, 1:] += 1
    here = batch.neighbor_mask.any(dim=1)
    moved = (centre(module, batch._replace(image=image)) - code).abs().amax(dim=1)
    assert (moved[here] > 1e-6).all() and (moved[~here] == 0).all()


def test_with_images_only_no_expression_is_read(module, batch):
    half = torch.arange(B) % 2 == 0
    changed = batch._replace(
        counts=batch.counts + 1,
        neighbor_counts=batch.neighbor_counts + 1,
        pooled=batch.pooled + 1,
        depth=batch.depth * 2,
    )
    one, other = (part.images_only(half) for part in (batch, changed))
    code, same = (centre(module, part) for part in (one, other))
    torch.testing.assert_close(code[half], same[half], rtol=0, atol=0)
    rates = module.decode(code, one).log_rate
    torch.testing.assert_close(rates[half], module.decode(code, other).log_rate[half], rtol=0, atol=0)
    torch.testing.assert_close(code[~half], centre(module, batch)[~half])


def test_training_takes_images_or_expression_from_some_spots(batch):
    module = make_module()
    many = Batch(*(tensor.repeat(200, *[1] * (tensor.ndim - 1)) for tensor in batch))
    assert module.condition.draw(many, "autoencoder", training=False)[0] is many
    shown, visible = module.condition.draw(many, "autoencoder", training=True)
    assert not (visible & ~shown.observed).any()
    no_image, image_only = ~shown.image_mask.any(dim=1), ~shown.observed.any(dim=1)
    assert 0.06 < no_image.float().mean() < 0.14 and 0.06 < image_only.float().mean() < 0.14
    assert not (no_image & image_only).any()
    rest = ~(no_image | image_only)
    for name in Batch._fields:
        torch.testing.assert_close(getattr(shown, name)[rest], getattr(many, name)[rest])


def test_without_images_training_hides_the_expression_of_no_spot(batch):
    many = Batch(*(tensor.repeat(200, *[1] * (tensor.ndim - 1)) for tensor in batch))
    many = many._replace(image=many.image[..., :0])
    assert make_module().condition.draw(many, "autoencoder", training=True)[0] is many


def test_spots_do_not_see_each_other(module, batch):
    alone = Batch(*(tensor[2:3] for tensor in batch))
    torch.testing.assert_close(centre(module, alone), centre(module, batch)[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("condition", ["neighborhood", "neighbors"])
def test_masks_of_random_extent(condition, batch):
    module = make_module(condition=condition)
    # The codes of a spot are estimated from its own entries.
    assert (module.field is not None) == (condition == "neighborhood")
    drawn = torch.stack([module.condition.draw(batch, "diffusion", training=False)[1] for _ in range(200)])
    assert not (drawn & ~batch.observed).any()
    share = drawn.float().sum(-1) / batch.observed.sum(-1).clamp_min(1)
    if condition == "neighbors":
        assert not drawn.any()
    else:
        assert share.min() < 0.15 and share.max() == 1
        # A third of the entries on average, the mean of the square of a uniform number, and of every spot by itself; but for a
        # tenth of the spots, of which all.
        some = batch.observed.any(dim=1)
        assert abs(share[:, some].mean() - 0.9 * 2 / 3) < 0.02
        assert 0.1 <= (share[:, some] == 0).float().mean() < 0.2
        assert torch.corrcoef(share[:, some].T).fill_diagonal_(0).abs().max() < 0.3
    torch.testing.assert_close(
        module.condition.visible(batch),
        batch.observed if condition == "neighborhood" else torch.zeros_like(batch.observed),
    )


@pytest.mark.parametrize("loss", ["counts", "log"])
def test_loss_is_of_masked_entries_alone(loss, batch):
    module = make_module(loss=loss)
    visible = batch.observed & (torch.rand(B, G) < 0.5)
    masked = batch.observed & ~visible
    code = torch.randn(B, D)
    rates = module.generative(batch, code)["rates"]
    before = module.expression_loss(batch, rates, masked).loss
    junk = batch._replace(counts=torch.where(masked, batch.counts, 60.0))
    torch.testing.assert_close(module.expression_loss(junk, rates, masked).loss, before)
    assert not torch.allclose(module.expression_loss(batch, rates, visible).loss, before)
    nothing = module.expression_loss(batch, rates, torch.zeros_like(masked)).loss
    assert nothing == 0
    encoded, _, output = module(batch)
    assert not (encoded["visible"] & ~batch.observed).any()
    assert torch.isfinite(output.loss)


def count_loss(counts, log_mean, log_size):
    """Sum of the negative log likelihoods of counts ``(n_spots, n_genes)`` in spots of depth 1."""
    likelihood = CountLikelihood(counts.shape[1]).to(counts.dtype)
    likelihood.log_size.data.copy_(log_size)
    batch = SimpleNamespace(counts=counts, depth=counts.new_ones(len(counts)))
    weight = torch.ones_like(counts)
    return likelihood.loss(batch, Rates(log_mean, log_mean), weight)["negative_log_likelihood"] * counts.numel()


def test_negative_binomial():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, (6, 5)).astype(np.float64)
    log_mean, log_size = rng.normal(0, 2, (6, 5)), rng.uniform(-3, 3, 5)
    loss = count_loss(*(torch.from_numpy(a) for a in (counts, log_mean, log_size)))
    mean, size = np.exp(log_mean), np.exp(log_size)
    assert float(loss) == pytest.approx(-stats.nbinom.logpmf(counts, size, size / (size + mean)).sum(), rel=1e-6)


def test_negative_binomial_is_finite_at_the_extremes():
    counts = torch.tensor([[0.0, 0.0, 1e5, 1e5]])
    log_mean = torch.tensor([[-30.0, 12.0, -30.0, 12.0]], requires_grad=True)
    for log_size in (-50.0, 50.0):
        loss = count_loss(counts, log_mean, torch.full((4,), log_size))
        (gradient,) = torch.autograd.grad(loss, log_mean)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("weight_of_all", [1.0, 1e-3])
def test_losses_are_weighted_means(weight_of_all):
    rng = np.random.default_rng(1)
    counts, depth = rng.poisson(1.5, (6, 5)).astype(np.float64), np.array([0.25, 3, 40, 500, 2000, 9000])
    weight, detected = weight_of_all * rng.random((6, 5)), rng.normal(3, 1, (6, 5))
    log_rate = rng.normal(-6, 1, (6, 5))
    batch = SimpleNamespace(counts=torch.from_numpy(counts), depth=torch.from_numpy(depth))
    likelihood = CountLikelihood(5).double()
    rates = Rates(torch.from_numpy(log_rate), torch.from_numpy(detected))
    found = likelihood.loss(batch, rates, torch.from_numpy(weight))
    squared = (detected - np.log1p(counts * (TARGET_SUM / np.maximum(depth, 1))[:, None])) ** 2
    mean, size = np.exp(log_rate) * depth[:, None], np.e
    unlikely = -stats.nbinom.logpmf(counts, size, size / (size + mean))
    shown = counts > 0
    assert float(found["squared_error"]) == pytest.approx(np.average(squared[shown], weights=weight[shown]), rel=1e-4)
    assert float(found["negative_log_likelihood"]) == pytest.approx(np.average(unlikely, weights=weight), rel=1e-4)


def test_log_normalise():
    counts, depth = torch.tensor([[0.0, 5.0]]), torch.tensor([2000.0])
    expected = torch.log1p(torch.tensor([[0.0, 25.0]]))
    torch.testing.assert_close(log_normalise(counts, depth), expected)
    assert torch.isfinite(log_normalise(counts, torch.zeros(1))).all()
    assert TARGET_SUM == 1e4


def test_decoder_starts_from_the_pools(module, batch):
    with torch.no_grad():
        rates = module.decode(torch.zeros(B, D), batch)
        wider = module.decode(torch.zeros(B, D), batch._replace(pooled=batch.pooled + 1))
    assert (wider.log_rate > rates.log_rate).all()
    one_count = log_normalise(torch.ones(B, 1), batch.depth)
    assert (rates.detected >= one_count).all()


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    dropout = Dropout(0.3)
    values = torch.full((400, 500), 2.0)
    dropped = dropout(values)
    assert abs((dropped == 0).float().mean() - 0.3) < 0.005
    assert (dropped[dropped != 0] - 2 / 0.7).abs().max() < 0.01  # a share of 1/256 more or less is dropped
    assert (dropped.mean() - 2).abs() < 0.01
    assert torch.equal(dropout.eval()(values), values)


def test_surroundings_do_not_know_the_spot(module, batch):
    other = batch._replace(counts=batch.counts + 5, observed=~batch.observed, depth=batch.depth * 3)
    both = [module.encoder.surroundings(one) for one in (batch, other)]
    known = [[*chain(*around.known), around.own, around.codes, around.mask] for around in both]
    assert len(known[0]) == 2 * len(module.encoder.layers) + 3
    for one, same in zip(*known, strict=True):
        assert torch.equal(one, same)
    codes = [module.encode(one, one.observed) for one in (batch, other)]
    assert torch.equal(codes[0].tokens[:, 1:], codes[1].tokens[:, 1:])
    assert not torch.equal(codes[0].centre, codes[1].centre)
    # Computed once, they serve every mask.
    for visible in (batch.observed, batch.observed & (torch.rand(B, G) < 0.5)):
        around = module.encoder.surroundings(batch)
        for one, same in zip(module.encode(batch, visible), module.encode(batch, visible, around), strict=True):
            assert torch.equal(one, same)


def test_chosen_genes_are_decoded_as_among_all(module, batch):
    code, genes = torch.randn(B, D), torch.tensor([7, 0, 3])
    torch.nn.init.normal_(module.decoder.pooled_weight)
    for whole, part in zip(module.decode(code, batch), module.decode(code, batch, genes), strict=True):
        torch.testing.assert_close(part, whole[:, genes])


def test_prediction_of_what_is_asked_for(module, batch):
    whole, some = (predict(module, batch, None, 1, observed=observed) for observed in (True, False))
    assert (whole.network > 0).all() and (some.network[batch.observed] == 0).all()
    torch.testing.assert_close(some.network[~batch.observed], whole.network[~batch.observed])
    assert (whole.detected == 0).all()
    one_count = log_normalise(torch.ones(B, 1), batch.depth)
    assert (predict(module, batch, None, 1, detected=True).detected >= one_count).all()


def test_moments_over_blocks():
    values = 1000 + torch.randn(50, 3)
    counted = torch.rand(50, 3) < 0.7
    counted[:, 2] = False
    moments, weighted = Moments(), Moments()
    for block in torch.arange(50).split(17):
        moments.add(values[block])
        weighted.add(values[block], weight=counted[block])
    torch.testing.assert_close(moments.mean, values.double().mean(0))
    torch.testing.assert_close(moments.std, values.double().std(0, unbiased=False))
    for gene in range(2):
        shown = values[counted[:, gene], gene].double()
        torch.testing.assert_close(weighted.mean[gene], shown.mean())
        torch.testing.assert_close(weighted.std[gene], shown.std(unbiased=False))
    assert weighted.mean[2] == 0 and weighted.std[2] == 0
