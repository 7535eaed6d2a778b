"""What the phases show, learn and validate on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lgdist_scvi import PUBLISHED
from lgdist_scvi.model import _training
from lgdist_scvi.module._conditions import CONDITIONS
from lgdist_scvi.train import AutoencoderPlan, DiffusionPlan
from lgdist_scvi.train._plans import WARMUP_STEPS, PhasePlan


@pytest.fixture
def model(small):
    return small.build(small.tissue())


def keep_last(plan):
    """In place of choosing among the weights by what is validated on."""
    plan._put(plan._averaged)
    return True


def test_weights_are_averaged_over_steps(model):
    plan = AutoencoderPlan(model.module, ema_decay=0.9)
    first = plan._copy()
    average = None
    for step in range(1, 5):
        for weight in plan._weights():
            weight.add_(step)
        plan.average()
        current = plan._weights()
        average = (
            [c.clone() for c in current]
            if average is None
            else [0.9 * a + 0.1 * c for a, c in zip(average, current, strict=True)]
        )
    assert plan.n_averaged == 4
    for found, expected in zip(plan._averaged, average, strict=True):
        torch.testing.assert_close(found, expected)
    plan.on_validation_epoch_start()
    torch.testing.assert_close(plan._weights()[0], average[0])
    plan._put(plan._current)
    torch.testing.assert_close(plan._weights()[0], first[0] + 10)


def test_rates_warm_up_and_fall(small, model):
    rates = []

    class Plan(AutoencoderPlan):
        def loss(self, batch):
            rates.append(self.optimizers().param_groups[0]["lr"])
            return super().loss(batch)

    type(model)._autoencoder_plan_cls, before = Plan, type(model)._autoencoder_plan_cls
    try:
        model.train_autoencoder(**(small.TRAIN | {"max_epochs": 60, "early_stopping": False, "batch_size": 75}))
    finally:
        type(model)._autoencoder_plan_cls = before
    rates = np.array(rates)
    assert len(rates) == 120
    np.testing.assert_allclose(
        rates[:WARMUP_STEPS], Plan.peak_lr * np.arange(1, WARMUP_STEPS + 1) / WARMUP_STEPS, rtol=1e-5
    )
    fallen = np.arange(120 - WARMUP_STEPS) / (120 - WARMUP_STEPS)
    expected = Plan.peak_lr * (0.01 + 0.99 * (1 + np.cos(np.pi * fallen)) / 2)
    np.testing.assert_allclose(rates[WARMUP_STEPS:], expected, rtol=1e-3)


def test_masks_and_noise_are_those_of_the_minibatch(model, monkeypatch):
    """Whichever process has it: the second of two draws for its first minibatch what one alone draws for its second."""

    def drawn(place, rank=0, n_processes=1, epoch=0, seed=3):
        plan = AutoencoderPlan(model.module)
        plan.seed = seed
        monkeypatch.setattr(PhasePlan, "global_rank", rank)
        monkeypatch.setattr(PhasePlan, "current_epoch", epoch)
        monkeypatch.setattr(PhasePlan, "trainer", SimpleNamespace(world_size=n_processes))
        plan.on_train_batch_start(None, place)
        return torch.rand(4).tolist()

    alone = [drawn(place) for place in range(4)]
    assert [drawn(place, rank, 2) for place in (0, 1) for rank in (0, 1)] == alone
    assert len({tuple(one) for one in [*alone, drawn(0, epoch=1), drawn(0, seed=4)]}) == 6


def test_neighbours_alone_complete_but_the_autoencoder_learns_visible_spots_too(model):
    batch = model._view().gather(np.arange(100))
    condition = CONDITIONS["neighbors"]
    shown = condition.draw(batch, "autoencoder", training=True)[1].float().mean(dim=1)
    assert shown.min() < 0.2 and shown.max() > 0.95
    assert not condition.draw(batch, "diffusion", training=True)[1].any()
    assert not condition.visible(batch).any()


def test_clean_codes_of_the_published_convention_decode_better_than_those_of_neighbours(small):
    """They are what the diffusion draws."""
    model = small.build(small.tissue(n_spots=300), PUBLISHED)
    model.train_autoencoder(**(small.TRAIN | {"max_epochs": 60}))
    batch = model._view().gather(np.arange(300))
    with torch.no_grad():
        clean, masked = (
            model.module.expression_loss(
                batch, model.module.decode(model.module.encode(batch, seen).centre, batch), batch.observed
            )
            for seen in (batch.observed, torch.zeros_like(batch.observed))
        )
    assert clean.loss < 0.95 * masked.loss


def test_the_denoiser_is_validated_on_spots_that_it_is_not_trained_on(small, monkeypatch):
    """Other clean codes of the held-out spots change what is validated and nothing that is learnt."""
    monkeypatch.setattr(PhasePlan, "keep_best", keep_last)
    codes, losses, weights = _training.clean_codes, [], []
    for shift in (0.0, 3.0):
        model = small.build(small.tissue())
        model.train_autoencoder(**small.TRAIN)
        seen = []

        def shifted(module, view, completed, shift=shift, seen=seen):
            held_out = np.random.default_rng(0).permutation(150)[:15]
            clean = codes(module, view, completed)
            clean[held_out] += shift
            seen.append(clean)
            return clean

        monkeypatch.setattr(_training, "clean_codes", shifted)
        model.train_diffusion(**{k: v for k, v in small.TRAIN.items() if k != "validation_size"}, early_stopping=False)
        assert seen
        losses.append(model.history["diffusion"])
        weights.append(model.module.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert losses[0]["train_loss"].equals(losses[1]["train_loss"])
    assert (losses[0]["validation_loss"] != losses[1]["validation_loss"]).all(axis=None)


def test_validation_of_the_denoiser_draws_the_same_every_time(trained):
    view = trained._view(share=trained.module.share.numpy())
    view.clean = trained.get_latent_representation(kind="code")
    batch, plan = view.gather(np.arange(40)), DiffusionPlan(trained.module)
    before = torch.get_rng_state()
    first, second = (plan.validation_loss(batch).loss for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(plan.loss(batch).loss, plan.loss(batch).loss)
