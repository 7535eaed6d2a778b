"""The code for GPUs: on every machine with tensors that only pretend to be on one, and on a GPU where there is one.

PyTorch's fake tensors have a shape, a type and a device, and no values. An operation on two devices fails as it would on a GPU,
and so does whatever reads a value, for which the CPU would have to wait. Without a GPU PyTorch can only pretend a part of what
is done there, not the gradients and in its build for CPUs not even an index; so there the device is "meta", for which the
same holds.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgdist_scvi import PUBLISHED
from lgdist_scvi.module import _posterior
from lgdist_scvi.module._conditions import Neighbors
from lgdist_scvi.module._posterior import draw_noise, predict
from lgdist_scvi.module._read_outs import READ_OUTS
from lgdist_scvi.module._schedule import NoiseSchedule
from lgdist_scvi.train import AutoencoderPlan, DiffusionPlan, _calibration, _plans, _statistics

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "meta")
OPTIONS = {"default": {}, "no field": {"n_factors": 0, "sampler": "ddim"}, "published": PUBLISHED}


class NoDoubles(TorchDispatchMode):
    """Refuses double precision on the device: not every device has it, and no GPU is quick at it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.device == DEVICE:
                assert tensor.dtype not in (torch.float64, torch.complex128), function
        return output


def on_fake_device(module):
    """Replace all that a module holds by fake tensors on a GPU."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
                part._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
    return module


def on_the_host(function):
    """The function outside the pretence, unless what it is called with is part of it."""

    def called(*arguments, **options):
        fake = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(arguments))
        with nullcontext() if fake else unset_fake_temporarily():
            return function(*arguments, **options)

    return called


@pytest.fixture(params=OPTIONS)
def work(request, small, monkeypatch):
    """A trained model whose module pretends to be on a GPU, and its data, which are on the CPU."""
    adata = small.hide(small.tissue(n_libraries=2))
    model = small.build(
        adata, OPTIONS[request.param], library_key="library_id", image_key="X_image", observed_layer="observed"
    )
    data = model._training_data(0.1, 64)
    data.view.clean = np.zeros((150, 8), dtype=np.float32)
    n_factors = 1 if model.module.field is None else model.module.field.n_factors
    data.view.field = np.zeros((150, 6, n_factors), dtype=np.float32)
    batch, validation = data.view.gather(np.arange(60)), next(iter(data.val_dataloader()))
    noise = draw_noise(3, 8, seed=0)
    # What is read from a minibatch before it goes to the device, and the times of a sampler.
    monkeypatch.setattr(_posterior, "passes", on_the_host(_posterior.passes))
    monkeypatch.setattr(_calibration, "passes", _posterior.passes)
    monkeypatch.setattr(Neighbors, "visible", on_the_host(Neighbors.visible))
    monkeypatch.setattr(NoiseSchedule, "respaced", on_the_host(NoiseSchedule.respaced))
    # The generators of a GPU cannot be pretended.
    for owner in (_plans, _statistics):
        monkeypatch.setattr(owner, "seeded", lambda *_: nullcontext())
    with FakeTensorMode(allow_non_fake_inputs=True), NoDoubles():
        module = on_fake_device(model.module)
        yield SimpleNamespace(module=module, data=data, batch=batch, validation=validation, noise=noise.to(DEVICE))


@contextmanager
def plan_of(cls, module):
    plan = cls(module)
    plan._device = DEVICE
    module.phase = plan.phase
    module.train()
    yield plan
    module.phase = "autoencoder"
    module.eval()


def steps(work):
    """A step of each phase, but for the optimiser, which is PyTorch's."""
    for cls in (AutoencoderPlan, DiffusionPlan):
        with plan_of(cls, work.module) as plan:
            loss = plan.loss(work.batch.to(DEVICE)).loss
            loss.backward()
            plan.average()
            plan.average()
            assert loss.device == DEVICE and plan._averaged[0].device == DEVICE


def validation(work):
    seen, counts, held_out = work.validation
    on_device = seen.to(DEVICE), counts.to(DEVICE), held_out.to(DEVICE)
    for cls, batch in ((AutoencoderPlan, on_device), (DiffusionPlan, on_device[0])):
        with plan_of(cls, work.module) as plan, torch.no_grad():
            assert plan.validation_loss(batch).loss.device == DEVICE


def completion(work):
    for genes in (None, torch_real([3, 0, 17])):
        for name, read_out in READ_OUTS.items():
            for noise in (None, work.noise):
                prediction = predict(work.module, work.batch, noise, 2, genes=genes, detected=read_out.given_detection)
                rate, variance = read_out.read(prediction, work.module)
                assert rate.device == variance.device == DEVICE, name


def calibration(work):
    some = sparse.random(60, 40, 0.1, format="csr", random_state=0)
    data = SimpleNamespace(
        view=SimpleNamespace(
            gather=lambda rows, folds=False: work.batch, n_genes=40, similar=None, field=np.zeros((60, 1, 1))
        ),
        val_dataloader=lambda: [work.validation],
        val_idx=np.arange(60),
        n_val=60,
        truth=SimpleNamespace(counts=some),
        held_out=some > 0,
    )
    _calibration.fit_calibration(work.module, data, 0)
    assert work.module.dispersion.device == DEVICE


def statistics(work):
    view = SimpleNamespace(n_genes=40, gather=lambda rows: work.batch)
    _statistics.fit_code_statistics(work.module, view, np.arange(60), 0)


def torch_real(numbers):
    with unset_fake_temporarily():
        return torch.tensor(numbers)


@pytest.mark.parametrize(
    "what", [steps, validation, completion, calibration, statistics], ids=lambda what: what.__name__
)
def test_everything_stays_on_the_device(work, what):
    what(work)


def mixed_devices(work, monkeypatch):
    work.module.share = torch.empty(40)
    return RuntimeError


def double_precision(work, monkeypatch):
    log_value = _posterior.log_value_of_one
    monkeypatch.setattr(_posterior, "log_value_of_one", lambda depth: log_value(depth.double()).float())
    return AssertionError


def value_read_back(work, monkeypatch):
    likelihood = type(work.module.likelihood)
    rate = likelihood.rate
    monkeypatch.setattr(
        likelihood, "rate", lambda self, rates: rate(self, rates) if rates[0].isfinite().all() else None
    )
    return DataDependentOutputException


@pytest.mark.parametrize("break_it", [mixed_devices, double_precision, value_read_back], ids=lambda f: f.__name__)
def test_what_would_fail_or_wait_on_a_gpu_fails_here(work, monkeypatch, break_it):
    error = break_it(work, monkeypatch)
    with pytest.raises(error):
        completion(work)
