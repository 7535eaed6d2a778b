"""The noise schedule, and the samplers on targets whose optimal denoiser is known in closed form."""

import math

import numpy as np
import pytest
import torch

from lgdist_scvi.module._samplers import SAMPLERS, ddim, dpm_solver_pp
from lgdist_scvi.module._schedule import NoiseSchedule

N = 20_000
# Five standard errors of a mean, and of a standard deviation, in units of the target's standard deviation.
MEAN_TOLERANCE = 5 / math.sqrt(N)
STD_TOLERANCE = 5 / math.sqrt(2 * N)

MEAN = torch.tensor([1.0, -2.0, 0.3])
STD = torch.tensor([0.5, 2.0, 0.3])


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule(1000)


def gaussian_denoiser(schedule):
    """E[clean | noisy] for independent Gaussians."""

    def denoise(noisy, t):
        alpha, sigma = schedule.alpha(t, 2), schedule.sigma(t, 2)
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (noisy - alpha * MEAN)

    return denoise


def levels(n_steps):
    """The cosine schedule of Nichol & Dhariwal, equation 17, in numpy: share of the variance kept, and log(alpha / sigma)."""
    level = np.cos((np.arange(n_steps + 1) / n_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    kept = np.cumprod(np.maximum(level[1:] / level[:-1], 1 - 0.999))
    return kept, np.log(kept / (1 - kept)) / 2


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments_off(sample):
    """Largest error of the mean and of the standard deviation, in units of the target's standard deviation."""
    return ((sample.mean(0) - MEAN) / STD).abs().max().item(), (sample.std(0) / STD - 1).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "n_steps", "options"),
    [
        (ddim, 1000, {}),
        (dpm_solver_pp, 200, {"spacing": "time"}),
        (dpm_solver_pp, 50, {"spacing": "log_snr"}),
    ],
)
def test_gaussian_is_recovered(schedule, sampler, n_steps, options):
    mean_off, std_off = moments_off(sampler(gaussian_denoiser(schedule), normal(N, 3), schedule, n_steps, **options))
    assert mean_off < MEAN_TOLERANCE
    assert std_off < STD_TOLERANCE


@pytest.mark.parametrize(
    ("sampler", "n_steps", "spacing", "tolerance"),
    [
        (ddim, 5, "time", 0.46),
        (ddim, 10, "time", 0.23),
        (ddim, 5, "log_snr", 0.43),
        (ddim, 10, "log_snr", 0.22),
        (dpm_solver_pp, 5, "time", 0.38),
        (dpm_solver_pp, 10, "time", 0.37),
        (dpm_solver_pp, 5, "log_snr", 0.29),
        (dpm_solver_pp, 10, "log_snr", 0.04),
    ],
)
def test_few_steps(schedule, sampler, n_steps, spacing, tolerance):
    """The error of a coarse solver is in the spread; the mean stays exact."""
    noise = normal(N, 3)
    noise = (noise - noise.mean(0)) / noise.std(0)  # no sampling error: what is left is the solver's
    mean_off, std_off = moments_off(sampler(gaussian_denoiser(schedule), noise, schedule, n_steps, spacing=spacing))
    assert mean_off < 1e-3
    assert std_off < tolerance


def test_one_step_is_the_mean(schedule):
    for sampler in (ddim, dpm_solver_pp):
        torch.testing.assert_close(
            sampler(gaussian_denoiser(schedule), normal(10, 3), schedule, 1), MEAN.expand(10, 3), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize(
    ("sampler", "n_steps", "options"),
    [(ddim, 100, {}), (dpm_solver_pp, 50, {"spacing": "log_snr"})],
)
def test_mixture_weights(schedule, sampler, n_steps, options):
    weights, centres, std = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.5]), 0.3

    def denoise(noisy, t):
        alpha, sigma = schedule.alpha(t, 2), schedule.sigma(t, 2)
        variance = alpha**2 * std**2 + sigma**2
        share = torch.softmax(weights.log() - 0.5 * (noisy - alpha * centres) ** 2 / variance, dim=1)
        clean = centres + alpha * std**2 / variance * (noisy - alpha * centres)
        return (share * clean).sum(1, keepdim=True)

    torch.manual_seed(0)
    sample = sampler(denoise, normal(N, 1), schedule, n_steps, **options)
    right = sample > 0
    assert abs(right.float().mean().item() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / N) + 0.005  # 0.005 for the solver
    for inside, centre in ((~right, -2.0), (right, 1.5)):
        assert abs(sample[inside].mean().item() - centre) < 0.03
        assert abs(sample[inside].std().item() / std - 1) < 0.12


@pytest.mark.parametrize("spacing", ["time", "log_snr"])
@pytest.mark.parametrize("n_train", [1, 2, 3, 17, 1000])
def test_respaced_times_are_trained_times(n_train, spacing):
    schedule = NoiseSchedule(n_train)
    for n in {1, 2, 3, 5, 10, 16, 50, 333, 999, n_train} & set(range(1, n_train + 1)):
        times = schedule.respaced(n, spacing)
        assert times.dtype == torch.int64
        assert len(times) == n
        assert times[0] == n_train - 1
        assert n == 1 or times[-1] == 0
        assert (times.diff() < 0).all()
        if spacing == "time" and n > 1:
            assert (times.diff() + (n_train - 1) / (n - 1)).abs().max() <= 1  # even, up to rounding


def test_times_half_way_round_up(schedule):
    assert schedule.respaced(3).tolist() == schedule.respaced(3, "time").tolist() == [999, 500, 0]


@pytest.mark.parametrize("n", [2, 5, 16, 24])
def test_log_snr_spacing_is_even(schedule, n):
    _, log_snr = levels(1000)
    wanted = np.linspace(-3, log_snr[0], n)[1:]
    # The nearest times, all different with so few steps; the first time is always the last of the training.
    nearest = np.abs(wanted[:, None] - log_snr).argmin(axis=1)
    assert schedule.respaced(n, "log_snr").tolist() == [999, *nearest]


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_network_is_asked_at_the_respaced_times(schedule, sampler, spacing):
    asked = []

    def denoise(noisy, t):
        asked.append(t)
        return torch.zeros_like(noisy)

    sample = sampler(denoise, normal(4, 7, 3), schedule, 12, spacing=spacing)
    assert sample.shape == (4, 7, 3)
    assert all(t.shape == (4,) and t.dtype == torch.int64 and len(t.unique()) == 1 for t in asked)
    assert [t[0].item() for t in asked] == schedule.respaced(12, spacing).tolist()


def test_noise_passed_on_has_the_level_of_its_time(schedule):
    """With the true clean value as the estimate, the noisy value of every time has that time's level."""
    clean, noise = normal(50, 3, seed=1), normal(50, 3)

    def denoise(noisy, t):
        torch.testing.assert_close(noisy, schedule.add_noise(clean, noise, t), atol=1e-4, rtol=1e-4)
        return clean

    start = schedule.add_noise(clean, noise, torch.full((50,), 999))
    for sampler in (ddim, dpm_solver_pp):
        for spacing in ("time", "log_snr"):
            assert torch.equal(sampler(denoise, start, schedule, 20, spacing=spacing), clean)


def test_schedule_values():
    schedule = NoiseSchedule(1000)
    assert (schedule.alphas**2 + schedule.sigmas**2 - 1).abs().max() < 1e-6
    assert (schedule.alphas.diff() < 0).all()
    assert schedule.betas.max() == pytest.approx(0.999)
    assert (schedule.betas == schedule.betas.max()).sum() == 1  # only the last time is clipped
    # Closed form of the cumulative product, away from the clipped end.
    level = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 1, 500, 900)]
    for i, t in ((1, 0), (2, 499), (3, 899)):
        assert schedule.alphas[t].item() ** 2 == pytest.approx(level[i] / level[0], rel=1e-5)


def test_samplers_have_thelevels_in_full_precision(schedule):
    assert NoiseSchedule().n_steps == 1000
    kept, _ = levels(1000)
    np.testing.assert_allclose(np.square([alpha for alpha, _ in schedule.levels]), kept, rtol=1e-10)


def test_noise_is_added_by_the_levels(schedule):
    clean, noise, t = normal(3, 2), normal(3, 2, seed=1), torch.tensor([0, 400, 999])
    alpha, sigma = torch.tensor([schedule.levels[time] for time in t]).T[..., None]
    torch.testing.assert_close(schedule.add_noise(clean, noise, t), alpha * clean + sigma * noise)


def test_alpha_and_sigma_broadcast(schedule):
    t = torch.tensor([0, 500, 999])
    assert schedule.alpha(t).shape == schedule.sigma(t).shape == (3,)
    assert schedule.sigma(t, 3).shape == (3, 1, 1)
    assert torch.equal(schedule.alpha(t, 3)[:, 0, 0], schedule.alphas[t])


def test_float32_and_device(schedule):
    for buffer in schedule.buffers():
        assert buffer.dtype == torch.float32
    assert len(list(schedule.buffers())) == 3
    assert all(buffer.is_meta for buffer in NoiseSchedule(10).to("meta").buffers())
    assert NoiseSchedule(10).to(torch.float64).alphas.dtype == torch.float64
    for sampler in (ddim, dpm_solver_pp):
        sample = sampler(gaussian_denoiser(schedule), normal(2, 3), schedule, 3)
        assert sample.dtype == torch.float32
    assert not schedule.state_dict()


@pytest.mark.parametrize(("name", "spacing"), [("ddim", "time"), ("dpm_solver_pp", "log_snr")])
def test_spacing_of_each_sampler_by_itself(schedule, name, spacing):
    samples = [
        SAMPLERS[name](gaussian_denoiser(schedule), normal(5, 3), schedule, 6, **options)
        for options in ({}, {"spacing": spacing})
    ]
    assert torch.equal(*samples)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
def test_bad_arguments(schedule, sampler):
    for n_steps in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"1 to 1000.*got {n_steps}"):
            sampler(gaussian_denoiser(schedule), normal(2, 3), schedule, n_steps)
    with pytest.raises(ValueError, match="spacing='even' is unknown; choose one of 'time', 'log_snr'"):
        sampler(gaussian_denoiser(schedule), normal(2, 3), schedule, 5, spacing="even")
    with pytest.raises(ValueError, match="at least 1"):
        NoiseSchedule(0)
