"""The samplers against the schedulers of diffusers, an independent implementation.

Both get our betas, our times, the same starting noise and the same network. What differs, and is set aside here:

* ``DDIMScheduler.step`` takes the next time to lie ``num_train_timesteps // num_inference_steps`` below the current
  one, whatever times it was given; the step count is set before every step so that this is the next of our times.
* It ends with ``alpha = 1`` (``set_alpha_to_one``), that is with the clean estimate at the last time, as we do. With
  ``eta > 0`` it draws noise for that step too, and multiplies it by zero.
* ``DPMSolverMultistepScheduler`` with ``final_sigmas_type="zero"`` ends with a first-order step to zero noise, which is
  again the clean estimate. Its second-order steps are the midpoint variant, as ours.
* diffusers takes the running product of float32 betas, and so ``sigma`` at time 0 is off by 0.03%; the product is
  replaced by the same one in float64, or the samplers would agree to 2e-4 only.
"""

from fractions import Fraction

import pytest
import torch

from lgdist_scvi.module._samplers import ddim, dpm_solver_pp
from lgdist_scvi.module._schedule import NoiseSchedule

diffusers = pytest.importorskip("diffusers")

N_TRAIN = 1000
TOLERANCE = 1e-5
STEPS = [1, 2, 3, 5, 8, 10, 20, 50, 1000]


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule(N_TRAIN)


def toy_network(schedule):
    """A smooth estimate of the clean values that is neither linear nor independent of the time."""
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 6**0.5

    def denoise(noisy, t):
        signal = schedule.alpha(t, noisy.ndim)
        return torch.tanh((signal * noisy) @ weights) + 0.2 * torch.sin(3 * signal)

    return denoise


def exact_levels(schedule):
    return torch.cumprod(1 - schedule.betas.double(), dim=0)


def start():
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n_steps", STEPS)
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_ddim(schedule, n_steps, spacing):
    network = toy_network(schedule)
    times = schedule.respaced(n_steps, spacing).tolist()
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=N_TRAIN,
        trained_betas=schedule.betas.numpy(),
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.alphas_cumprod = exact_levels(schedule)
    noisy = start()
    for time, following in zip(times, [*times[1:], -1], strict=True):
        scheduler.num_inference_steps = Fraction(N_TRAIN, time - following)
        clean = network(noisy, torch.full((40,), time))
        noisy = scheduler.step(clean, time, noisy).prev_sample

    ours = ddim(network, start(), schedule, n_steps, spacing=spacing)
    torch.testing.assert_close(ours, noisy.float(), atol=TOLERANCE, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("n_steps", STEPS)
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_dpm_solver(schedule, n_steps, spacing):
    network = toy_network(schedule)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=N_TRAIN,
        trained_betas=schedule.betas.numpy(),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    scheduler.alphas_cumprod = exact_levels(schedule)
    scheduler.set_timesteps(timesteps=schedule.respaced(n_steps, spacing).tolist())
    noisy = start()
    for time in scheduler.timesteps:
        clean = network(noisy, time.expand(40))
        noisy = scheduler.step(clean, time, noisy).prev_sample
    ours = dpm_solver_pp(network, start(), schedule, n_steps, spacing=spacing)
    torch.testing.assert_close(ours, noisy.float(), atol=TOLERANCE, rtol=0)


def test_cosine_betas(schedule):
    """diffusers' own cosine schedule, of which the levels are the running product."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=N_TRAIN, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(schedule.betas, scheduler.betas, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(schedule.alphas**2, scheduler.alphas_cumprod, atol=1e-5, rtol=0)
