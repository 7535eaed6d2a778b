"""What is measured before a phase: on which spots, on which device, with which random numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lgdist_scvi.module._autoencoder import Codes
from lgdist_scvi.train import _seeds, _statistics


def test_image_statistics_are_of_spots_with_an_image(small, monkeypatch):
    """Of 150 spots 4 have an image, and none of these is among the 20 on which expression is measured."""
    monkeypatch.setattr(_statistics, "STATISTICS_SPOTS", 20)
    adata = small.tissue()
    sampled = _statistics.some_of(np.arange(adata.n_obs), 20, 0)
    imaged = np.setdiff1d(np.arange(adata.n_obs), sampled)[:4]
    image = adata.obsm["X_image"].copy()
    adata.obsm["X_image"][np.setdiff1d(np.arange(adata.n_obs), imaged)] = np.nan
    model = small.build(adata, image_key="X_image")
    _statistics.fit_statistics(model.module, model._view(), 0)
    scale = model.module.encoder.scale
    np.testing.assert_allclose(scale.image_mean, image[imaged].mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scale.image_std, image[imaged].std(axis=0), rtol=1e-4)
    small.fit(model, max_epochs=1)
    assert np.isfinite(model.get_completed_expression(return_numpy=True, **small.READ)).all()


def test_tokens_that_do_not_exist_do_not_count():
    tokens = torch.randn(40, 3, 2)
    mask = torch.rand(40, 3) < 0.6
    filled = torch.where(mask[..., None], tokens, 1e3)
    batch = SimpleNamespace(clean=torch.zeros(40, 2), to=lambda device: batch)
    module = SimpleNamespace(
        device=torch.device("cpu"),
        condition=SimpleNamespace(draw=lambda batch, phase, training: (batch, None)),
        encode=lambda batch, visible: Codes(filled, mask),
        denoiser=SimpleNamespace(code_std=torch.zeros(2), residual_std=torch.zeros(2)),
    )
    view = SimpleNamespace(n_genes=5, gather=lambda rows: batch)
    _statistics.fit_code_statistics(module, view, np.arange(40), 0)
    torch.testing.assert_close(module.denoiser.code_std, tokens[mask].std(0, unbiased=False))


def test_scales_of_codes_are_of_the_spots_that_are_asked_for(small, trained):
    seen = []
    view = trained._view(share=trained.module.share.numpy())
    view.clean = trained.get_latent_representation(kind="code")
    spied = SimpleNamespace(n_genes=view.n_genes, gather=lambda rows: seen.extend(rows) or view.gather(rows))
    state = {name: value.clone() for name, value in trained.module.state_dict().items()}
    _statistics.fit_code_statistics(trained.module, spied, np.array([3, 50, 77]), 0)
    trained.module.load_state_dict(state)
    assert seen == [3, 50, 77]


@pytest.mark.parametrize(("device", "forked"), [("cpu", []), ("cuda:1", [torch.device("cuda:1")])])
def test_seeding_touches_the_generators_of_one_device_only(monkeypatch, device, forked):
    calls, seeds = [], []
    fork = torch.random.fork_rng

    def fork_rng(devices):
        calls.append(devices)
        return fork(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    monkeypatch.setattr(torch.cuda, "device", lambda device: _seeds.seeded(0) if device.index == 1 else None)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)
    with _seeds.seeded(5, torch.device(device)):
        drawn = torch.rand(3)
    assert calls[0] == forked and seeds == [5] * len(forked)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_field_is_fitted_on_the_device_of_the_training(small, monkeypatch):
    from lgdist_scvi.model import _training
    from lgdist_scvi.train import _runner

    class Stop(Exception):
        pass

    def look(module, view, seed):
        assert module.device.type == "meta"
        raise Stop

    monkeypatch.setattr(_runner, "training_devices", lambda *_: (torch.device("meta"), 1))
    monkeypatch.setattr(_training, "fit_statistics", lambda *_: None)
    monkeypatch.setattr(_training, "fit_field", look)
    with pytest.raises(Stop):
        small.build(small.tissue()).train_autoencoder(**small.TRAIN)
