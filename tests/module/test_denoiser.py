"""The denoiser starts as the exact one for normally distributed codes, and is conditioned on the neighbourhood."""

import pytest
import torch

from lgdist_scvi.module._autoencoder import Codes
from lgdist_scvi.module._denoiser import Denoiser
from lgdist_scvi.module._lgdist import LGDiSTModule
from lgdist_scvi.module._samplers import dpm_solver_pp
from lgdist_scvi.module._schedule import NoiseSchedule

B, T, D, STEPS = 6, 5, 8, 100


def make_denoiser(trained=False):
    torch.manual_seed(0)
    sizes = {"n_latent": D, "n_hidden": 32, "n_layers": 2, "n_heads": 2}
    denoiser = Denoiser(**sizes, schedule=NoiseSchedule(STEPS), sampler=dpm_solver_pp)
    if trained:
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


@pytest.fixture
def codes():
    mask = torch.rand(B, T) < 0.6
    mask[:, 0] = True
    return Codes(torch.randn(B, T, D), mask)


def estimate(denoiser, noisy, t, codes):
    with torch.no_grad():
        return denoiser(noisy[:, None], t, codes, denoiser.context(codes))[:, 0]


def test_fresh_denoiser_is_the_mean_given_normal_codes(codes):
    denoiser = make_denoiser()
    noisy, t = torch.randn(B, D), torch.randint(STEPS, (B,))
    alpha, sigma = denoiser.schedule.alpha(t, 2), denoiser.schedule.sigma(t, 2)
    torch.testing.assert_close(estimate(denoiser, noisy, t, codes), alpha * noisy)
    # Of residuals with unit variance, alpha * noisy is the regression on the noisy ones: alpha^2 + sigma^2 = 1.
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_layers_start_as_the_identity(codes):
    denoiser = make_denoiser()
    token, signal = torch.randn(B, 1, 32), torch.randn(B, 32)
    for layer, keys_values in zip(denoiser.layers, denoiser.context(codes), strict=True):
        torch.testing.assert_close(layer(token, signal, keys_values, codes.mask), token)


def test_every_weight_gets_a_gradient(codes):
    denoiser = make_denoiser(trained=True).train()
    noisy, t = torch.randn(B, D), torch.randint(STEPS, (B,))
    denoiser(noisy[:, None], t, codes, denoiser.context(codes)).square().mean().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_depends_on_time_condition_and_noise(codes):
    denoiser = make_denoiser(trained=True)
    noisy, t = torch.randn(B, D), torch.full((B,), 30)
    base = estimate(denoiser, noisy, t, codes)
    moved = codes.tokens.clone()
    moved[:, 0] += 1
    assert not torch.allclose(estimate(denoiser, noisy, t, codes._replace(tokens=moved)), base)
    assert not torch.allclose(estimate(denoiser, noisy, t + 20, codes), base)
    assert not torch.allclose(estimate(denoiser, noisy + 1, t, codes), base)
    # Neighbours that exist matter, in no order; those that do not exist do not matter.
    present = codes.mask & (torch.arange(T) > 0)
    near = torch.where(present[..., None], codes.tokens + 1, codes.tokens)
    changed = (estimate(denoiser, noisy, t, codes._replace(tokens=near)) - base).abs().amax(1)
    assert (changed[present.any(1)] > 1e-5).all()
    absent = torch.where(codes.mask[..., None], codes.tokens, 9.0)
    torch.testing.assert_close(estimate(denoiser, noisy, t, codes._replace(tokens=absent)), base, rtol=0, atol=1e-5)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(T - 1)])
    shuffled = Codes(codes.tokens[:, order], codes.mask[:, order])
    torch.testing.assert_close(estimate(denoiser, noisy, t, shuffled), base, rtol=0, atol=1e-5)


def test_samples_scatter_around_the_masked_code(codes):
    """An untrained denoiser draws from the normal distribution around the code of the masked spot."""
    torch.manual_seed(0)
    size = {"n_hidden": 32, "n_heads": 2, "n_denoiser_hidden": 32, "n_denoiser_layers": 1}
    module = LGDiSTModule(n_genes=10, n_latent=D, n_diffusion_steps=1000, **size).eval()
    spread = torch.linspace(0.5, 2, D)
    module.denoiser.residual_std.copy_(spread)
    noise = torch.randn(B, 3000, D)
    drawn = module.denoiser.sample(codes, noise, n_steps=50)
    assert drawn.shape == (B, 3000, D)
    torch.testing.assert_close(drawn.mean(1), codes.centre, rtol=0, atol=0.2)
    torch.testing.assert_close(drawn.std(1), spread.expand(B, D), rtol=0.1, atol=0)


def test_samples_do_not_mix(codes):
    torch.manual_seed(0)
    size = {"n_hidden": 32, "n_heads": 2, "n_denoiser_hidden": 32, "n_denoiser_layers": 1}
    module = LGDiSTModule(n_genes=10, n_latent=D, n_diffusion_steps=100, **size).eval()
    module.denoiser = make_denoiser(trained=True)
    noise = torch.randn(B, 9, D)
    drawn = module.denoiser.sample(codes, noise, n_steps=5)
    torch.testing.assert_close(module.denoiser.sample(codes, noise[:, 5:7], 5), drawn[:, 5:7], rtol=1e-4, atol=1e-4)
    alone = Codes(codes.tokens[2:3], codes.mask[2:3])
    torch.testing.assert_close(module.denoiser.sample(alone, noise[2:3, :4], 5), drawn[2:3, :4], rtol=1e-4, atol=1e-4)


def test_context_is_that_of_each_noise_level(codes):
    """Computed once, the keys and values serve every sample."""
    denoiser = make_denoiser(trained=True)
    context = denoiser.context(codes)
    noisy = torch.randn(B, D)
    for time in (0, 50, STEPS - 1):
        t = torch.full((B,), time)
        shared = denoiser(noisy[:, None], t, codes, context)[:, 0]
        torch.testing.assert_close(shared, estimate(denoiser, noisy, t, codes))
