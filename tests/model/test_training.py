"""Both phases are trained on one split, reproducibly, and what was learnt is kept."""

import os
import random
import signal
import sys
from contextlib import contextmanager, nullcontext

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lgdist_scvi import LGDiST
from lgdist_scvi.module._posterior import draw_noise, predict
from lgdist_scvi.module._read_outs import expected
from lgdist_scvi.train import AutoencoderPlan, DiffusionPlan, _runner
from lgdist_scvi.train._plans import PhasePlan


@pytest.fixture
def model(small):
    return small.build(small.tissue())


def weights(model, *parts):
    state = model.module.state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith(parts)}


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


class At(pl.Callback):
    """Calls something at the start of every batch, with the trainer and the plan."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.function(trainer, pl_module, batch)


def options(small, **changes):
    kept = {name: value for name, value in small.TRAIN.items() if name != "validation_size"}
    return kept | changes


def test_both_phases_hold_out_the_same_entries(small, model):
    splits = []
    small.fit(model, callbacks=[At(lambda trainer, plan, batch: splits.append(trainer.datamodule))])
    first, second = splits[0], splits[-1]
    assert first is not second
    assert first.held_out.nnz == pytest.approx(0.1 * np.prod(model.adata.shape), rel=0.1)
    assert (first.held_out != second.held_out).nnz == 0
    for data in (first, second):
        assert data.view.counts.multiply(data.held_out).nnz == 0
        assert data.view.hidden.new(data.held_out).nnz == 0
    assert first.n_train == model.adata.n_obs
    # The denoiser is validated on as large a share of the spots, which it is not trained on.
    assert second.n_val == 15 and sorted([*second.train_idx, *second.val_idx]) == list(range(150))


def test_split_depends_on_the_seed_of_the_model_alone(small):
    adata = small.tissue()

    def held_out(seed):
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        return small.build(adata, {"seed": seed})._training_data(0.1, 64).held_out

    assert (held_out(3) != held_out(3)).nnz == 0
    assert (held_out(3) != held_out(4)).nnz > 0


def test_history_of_each_phase(small, model):
    assert model.history == {}
    small.fit(model, max_epochs=None, autoencoder_max_epochs=3, diffusion_max_epochs=2, early_stopping=False)
    assert set(model.history) == {"autoencoder", "diffusion"}
    for phase, n_epochs in {"autoencoder": 3, "diffusion": 2}.items():
        metrics = model.history[phase]
        assert {"train_loss", "validation_loss"} <= set(metrics)
        for name, table in metrics.items():
            assert list(table.columns) == [name]
            assert table.index.name == "epoch"
            assert table.index.tolist() == list(range(n_epochs))
            assert np.isfinite(table.to_numpy()).all()
    assert {"negative_log_likelihood_train", "squared_error_validation"} <= set(model.history["autoencoder"])


def test_the_second_phase_leaves_the_autoencoder_alone(small, model):
    modes = []

    def look(trainer, plan, batch):
        module = plan.module
        modes.append((module.phase, module.encoder.training, module.decoder.training, module.denoiser.training))
        assert all(part.training == module.encoder.training for part in module.encoder.modules())

    model.train_autoencoder(**(small.TRAIN | {"callbacks": [At(look)]}))
    assert set(modes) == {("autoencoder", True, True, True)}
    modes.clear()
    before = weights(model, "encoder", "decoder", "share", "dispersion", "detected")
    denoiser = weights(model, "denoiser")
    model.train_diffusion(**options(small, callbacks=[At(look)]))
    assert set(modes) == {("diffusion", False, False, True)}
    assert same(before, weights(model, "encoder", "decoder", "share", "dispersion", "detected"))
    assert not same(denoiser, weights(model, "denoiser"))
    assert model.module.phase == "autoencoder"
    assert not any(part.training for part in model.module.modules())


def test_the_first_phase_leaves_the_denoiser_alone(small, model):
    before = weights(model, "denoiser")
    model.train_autoencoder(**small.TRAIN)
    assert same(before, weights(model, "denoiser"))


def test_training_goes_on(small, model):
    small.fit(model)
    before, statistics = weights(model, "encoder", "decoder", "denoiser"), weights(model, "share", "encoder.mean")
    small.fit(model, max_epochs=3, early_stopping=False)
    after = weights(model, "encoder", "decoder", "denoiser")
    for part in ("encoder.code.weight", "decoder.out.weight", "denoiser.out.weight"):
        assert not torch.equal(before[part], after[part])
    assert same(statistics, weights(model, "share", "encoder.mean"))
    for metrics in model.history.values():
        assert metrics["train_loss"].index.tolist() == list(range(5))
    # The second call starts where the first ended, with other random numbers.
    first = model.history["autoencoder"]["train_loss"].to_numpy().ravel()
    assert len(np.unique(first)) == 5


def test_the_diffusion_needs_the_autoencoder(small, model):
    with pytest.raises(RuntimeError, match=r"call train_autoencoder\(\)"):
        model.train_diffusion(**options(small))


def test_phases_must_hold_out_the_same_share(small, model):
    model.train_autoencoder(**small.TRAIN)
    with pytest.raises(ValueError, match="validation_size=0.1.*same entries"):
        model.train_diffusion(**options(small, validation_size=0.3))
    model.train_diffusion(**options(small, validation_size=0.1))


def test_entries_once_trained_on_cannot_be_held_out_later(small, model):
    model.train_autoencoder(**small.TRAIN)
    with pytest.raises(ValueError, match="validation_size=0.1"):
        model.train_autoencoder(**options(small, validation_size=0.3))
    assert model.held_out_ == 0.1


def test_seed_alone_decides(small):
    adata = small.tissue()
    states, completed = [], []
    for seed, outer in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(outer)
        np.random.seed(outer)
        fitted = small.fit(small.build(adata, {"seed": seed}))
        torch.rand(outer)
        completed.append(fitted.get_completed_expression(return_numpy=True, **small.READ))
        states.append(weights(fitted, ""))
    assert same(states[0], states[1])
    assert completed[0].tobytes() == completed[1].tobytes()
    assert not same(states[0], states[2])
    assert not np.array_equal(completed[0], completed[2])


def test_global_random_numbers_are_left_alone(small):
    adata = small.tissue(n_libraries=2)

    def states():
        return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()

    before = states()
    model = small.build(adata, library_key="library_id")
    small.fit(model)
    model.get_completed_expression(**small.READ)
    model.evaluate_completion(**small.READ)
    assert states() == before


def test_nothing_held_out(small, model):
    small.fit(model, validation_size=0.0)
    assert "validation_loss" not in model.history["autoencoder"]
    assert len(model.history["diffusion"]["train_loss"]) == 2
    assert np.isfinite(model.get_completed_expression(return_numpy=True, **small.READ)).all()
    with pytest.raises(ValueError, match="validation_size > 0"):
        model.evaluate_completion(**small.READ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        "no epochs": ({"max_epochs": 0}, r"max_epochs=0 must be a whole number of at least 1"),
        "endless": ({"max_epochs": -1}, r"max_epochs=-1 must be a whole number"),
        "half an epoch": ({"autoencoder_max_epochs": 1.5}, r"autoencoder_max_epochs=1\.5 must be a whole number"),
        "text": ({"diffusion_max_epochs": "3"}, r"diffusion_max_epochs='3' must be a whole number"),
        "empty batches": ({"batch_size": 0}, r"batch_size=0 must be a whole number of at least 1"),
        "negative share": ({"validation_size": -0.1}, r"validation_size=-0\.1 must be in \[0, 1\)"),
        "everything": ({"validation_size": 1.0}, r"validation_size=1\.0 must be in \[0, 1\)"),
        "not a share": ({"validation_size": float("nan")}, r"validation_size=nan must be in \[0, 1\)"),
        "hardware": ({"accelerator": "abacus"}, "abacus"),
    }.values(),
)
def test_arguments_out_of_range(small, model, arguments, message):
    with pytest.raises(ValueError, match=message):
        small.fit(model, **({"max_epochs": None} | arguments))
    assert model.history == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latent": 0}, "n_latent=0"),
        ({"n_heads": 5}, "n_hidden=32 must be a multiple of n_heads=5"),
        ({"n_denoiser_hidden": 33}, "n_denoiser_hidden=33 must be a multiple of n_heads=2"),
        ({"n_factors": -1}, "n_factors=-1"),
        ({"n_layers": 1.0}, "n_layers=1.0"),
        ({"n_diffusion_steps": 0}, "n_diffusion_steps=0"),
        ({"dropout": 1}, r"dropout=1 must be in \[0, 1\)"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": "0"}, "seed='0'"),
        ({"n_rounds": 1.5}, "n_rounds=1.5"),
        ({"n_rounds": 0}, "n_rounds=0 must be a whole number of at least 1"),
        ({"loss": "l2"}, "loss='l2' is unknown; choose one of 'counts', 'log'"),
        ({"sampler": "euler"}, "sampler='euler' is unknown"),
        ({"condition": None}, "condition=None is unknown"),
    ],
)
def test_options_out_of_range(small, options, message):
    with pytest.raises(ValueError, match=message):
        small.build(small.tissue(), options)


def state_of(adata):
    """Everything that a user may see of the data."""
    stored = {
        f"{part} {name}": value for part in ("layers", "obsm", "obsp") for name, value in getattr(adata, part).items()
    }
    values = {
        name: value.toarray() if hasattr(value, "toarray") else np.asarray(value) for name, value in stored.items()
    }
    return (
        {name: value.tobytes() for name, value in values.items()},
        adata.obs.to_csv(),
        adata.var.to_csv(),
        set(adata.uns),
    )


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal; a job in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("phase", ["autoencoder", "diffusion"])
def test_interruption_keeps_what_was_learnt(small, model, monkeypatch, phase):
    kept = []
    keep = PhasePlan.keep_best

    def spy(plan):
        finite = keep(plan)
        kept.append({name: value.clone() for name, value in plan._parts().state_dict().items()})
        return finite

    def stop(trainer, plan, batch):
        if trainer.current_epoch == 2 and plan.phase == phase:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PhasePlan, "keep_best", spy)
    start, data = weights(model, ""), state_of(model.adata)
    with pytest.raises(KeyboardInterrupt) as caught:
        small.fit(model, max_epochs=5, callbacks=[At(stop)])
    # Lightning would ignore every later interruption.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert caught.value.__notes__ == [
        f"The training ({phase}) was interrupted. What it learnt in 4 steps is kept, and train() continues from there."
    ]
    assert state_of(model.adata) == data
    assert len(model.history[phase]["train_loss"]) == 2
    trained = {"autoencoder": "encoder.code.weight", "diffusion": "denoiser.out.weight"}[phase]
    now = weights(model, "")
    assert torch.equal(now[trained], kept[-1][trained]) and not torch.equal(now[trained], start[trained])
    assert not model.module.training
    n_samples = 1 if phase == "diffusion" else 0
    assert np.isfinite(model.get_completed_expression(n_samples=n_samples, silent=True, return_numpy=True)).all()
    if phase == "autoencoder":
        with pytest.raises(RuntimeError, match="diffusion has not been trained"):
            model.get_completed_expression(n_samples=1)
    small.fit(model, max_epochs=1)
    assert len(model.history[phase]["train_loss"]) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_process_that_is_asked_to_stop_does_not_succeed(small, model):
    def stop(trainer, plan, batch):
        os.kill(os.getpid(), signal.SIGTERM)

    # Lightning would exit with the status of success.
    with pytest.raises(SystemExit) as caught:
        small.fit(model, callbacks=[At(stop)])
    assert caught.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_other_precision_of_the_weights_is_refused(small, model, precision):
    """Before Lightning converts them: a model left in another precision could complete nothing."""
    with pytest.raises(ValueError, match=f"precision='{precision}' .* single precision.*leave precision out"):
        small.fit(model, precision=precision)
    assert {value.dtype for value in model.module.parameters()} == {torch.float32} and model.history == {}
    small.fit(model)
    assert np.isfinite(model.get_completed_expression(n_samples=0, silent=True, return_numpy=True)).all()


@pytest.mark.parametrize("phase", ["autoencoder", "diffusion"])
def test_training_that_diverges_is_refused(small, model, phase):
    parts = ("encoder.code.", "decoder.out.", "denoiser.out.")
    start = weights(model, *parts)
    still = {"validation_size": 0.0, "max_epochs": 6}
    with pytest.raises(FloatingPointError, match=rf"\({phase}\) diverged: .* {phase}_plan_kwargs=.*it was 1e\+30"):
        small.fit(model, **still, **{f"{phase}_plan_kwargs": {"lr": 1e30, "ema_decay": 0.0}})
    assert phase not in model.history
    trained = parts[:2] if phase == "diffusion" else ()
    assert all(
        torch.equal(value, start[name])
        for name, value in weights(model, *parts).items()
        if not name.startswith(trained)
    )
    assert all(torch.isfinite(value).all() for value in weights(model, "").values())
    small.fit(model, **still)


def test_memory_that_runs_out(small, model):
    for error in (
        MemoryError("none left"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory"),
    ):

        def fail(trainer, plan, batch, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            small.fit(model, callbacks=[At(fail)])
        assert caught.value.__notes__ == ["Memory ran out while processing a minibatch: pass a smaller batch_size."]


def test_failure_before_the_first_step_is_no_training(small, model):
    class Fail(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        small.fit(model, callbacks=[Fail()])
    assert model.history == {}
    with pytest.raises(RuntimeError, match="autoencoder has not been trained"):
        model.get_completed_expression(n_samples=0)


@pytest.mark.parametrize("phase", ["autoencoder", "diffusion"])
def test_misspelt_plan_options_raise(small, model, phase):
    with pytest.raises(TypeError, match="learning_rate"):
        small.fit(model, **{f"{phase}_plan_kwargs": {"learning_rate": 1e-3}})
    assert model.history == {}  # found before the first phase took its time


def test_misspelt_arguments_raise(small, model):
    with pytest.raises(TypeError, match="max_epoch"):
        small.fit(model, max_epoch=3)


@pytest.mark.parametrize("phase", ["autoencoder", "diffusion"])
def test_a_phase_that_cannot_start_leaves_a_trained_model_as_it_was(small, model, phase):
    before = small.fit(model).get_completed_expression(return_numpy=True, **small.READ)
    with pytest.raises(TypeError, match="max_epoch"):
        getattr(model, f"train_{phase}")(
            **options(small, max_epoch=3), **({} if phase == "diffusion" else {"validation_size": 0.1})
        )
    assert not any(part.training for part in model.module.modules()) and model.module.phase == "autoencoder"
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    after = model.get_completed_expression(return_numpy=True, **small.READ)
    assert before.tobytes() == after.tobytes()


def test_early_stopping(small, model, monkeypatch):
    monkeypatch.setattr(_runner, "PATIENCE", 1)
    # With a rate of zero nothing is predicted better after the first validations.
    still = {"autoencoder_plan_kwargs": {"lr": 0.0}, "diffusion_plan_kwargs": {"lr": 0.0}}
    small.fit(model, max_epochs=20, **still)
    assert all(len(metrics["train_loss"]) < 10 for metrics in model.history.values())
    other = small.fit(small.build(small.tissue()), max_epochs=6, early_stopping=False, **still)
    assert all(len(metrics["train_loss"]) == 6 for metrics in other.history.values())


def test_best_weights_are_kept(small, model):
    """A rate that grows out of bounds: the kept weights are from before."""
    seen = []

    class Look(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["validation_loss"]))

    model.train_autoencoder(
        **(small.TRAIN | {"max_epochs": 6, "early_stopping": False, "callbacks": [Look()]}),
        plan_kwargs={"lr": 0.5, "ema_decay": 0.1},
    )
    data = model._training_data(0.1, 64)
    plan = AutoencoderPlan(model.module)
    with torch.no_grad():
        losses = [plan.validation_loss(batch).loss for batch in data.val_dataloader()]
    assert len(losses) == 1
    assert float(losses[0]) == pytest.approx(min(seen), rel=1e-4)
    assert max(seen) > min(seen)


@pytest.mark.parametrize(("fewest_epochs", "fewest_steps", "epochs"), [(1, 0, 4), (9, 0, 4), (9, 11, 6), (6, 900, 6)])
def test_default_number_of_epochs(small, model, monkeypatch, fewest_epochs, fewest_steps, epochs):
    monkeypatch.setattr(AutoencoderPlan, "default_steps", 7)
    monkeypatch.setattr(_runner, "MIN_EPOCHS", fewest_epochs)
    monkeypatch.setattr(_runner, "MIN_STEPS", fewest_steps)
    model.train_autoencoder(**(small.TRAIN | {"max_epochs": None, "early_stopping": False}))
    # 150 spots in minibatches of 64 are two steps.
    assert len(model.history["autoencoder"]["train_loss"]) == epochs


@pytest.mark.parametrize(("section_spots", "epochs", "decay", "n_factors"), [(150, 4, 2.0, 20), (37.5, 12, 0.5, 24)])
def test_of_more_spots_more_is_learned(small, monkeypatch, section_spots, epochs, decay, n_factors):
    monkeypatch.setattr(AutoencoderPlan, "default_steps", 7)
    monkeypatch.setattr(_runner, "MIN_EPOCHS", 1)
    monkeypatch.setattr(_runner, "SECTION_SPOTS", section_spots)
    decays = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            decays.append(pl_module.weight_decay)

    adata = small.tissue()
    LGDiST.setup_anndata(adata, layer="counts")
    model = LGDiST(adata, **{name: value for name, value in small.OPTIONS.items() if name != "n_factors"})
    options = small.TRAIN | {"max_epochs": None, "early_stopping": False, "callbacks": [Look()]}
    model.train_autoencoder(**options)
    assert len(model.history["autoencoder"]["train_loss"]) == epochs  # 7 steps, and 7 * 4**0.75, up to a validation
    assert decays == [decay] and model.module.field.loadings.shape[1] == n_factors
    model.train_autoencoder(**options, plan_kwargs={"weight_decay": 0.3})
    assert decays[1] == 0.3
    assert small.build(small.tissue(), {"n_factors": 3}).module.field.loadings.shape[1] == 3


@contextmanager
def no_waiting():
    """Let whatever waits for the GPU fail."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_loops_do_not_wait_for_the_gpu(small, trained, tmp_path):
    trained.save(tmp_path / "model")
    model = LGDiST.load(tmp_path / "model", trained.adata, accelerator="cuda")
    module, data = model.module, model._training_data(0.1, 64)
    data.view.clean = model.get_latent_representation(kind="code")
    host = data.view.gather(np.arange(60)).pin_memory()
    noise = draw_noise(4, 8, 0).cuda()
    for cls in (AutoencoderPlan, DiffusionPlan):
        module.phase = cls.phase
        plan = cls(module.train()).to(module.device)
        optimizer = torch.optim.AdamW(plan._parts().parameters())
        for repeat in range(3):
            # The first step allocates.
            with no_waiting() if repeat else nullcontext():
                plan.loss(host.to(module.device)).loss.backward()
                torch.nn.utils.clip_grad_norm_(plan._parts().parameters(), 1.0)
                optimizer.step()
                plan.average()
    module.phase = "autoencoder"
    module.eval()
    for repeat in range(2):
        with no_waiting() if repeat else nullcontext():
            expected(predict(module, host, noise, 4), module)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(small, tmp_path):
    adata = small.hide(small.tissue(n_libraries=2))
    setup = {"library_key": "library_id", "image_key": "X_image", "observed_layer": "observed"}
    model = small.fit(small.build(adata, **setup), accelerator="cuda", devices=1, max_epochs=4)
    assert model.device.type == "cuda"
    on_gpu = model.get_completed_expression(return_numpy=True, **small.READ)
    latent = model.get_latent_representation(kind="code")
    scores = model.evaluate_completion(**small.READ)
    model.to_device("cpu")
    np.testing.assert_allclose(model.get_completed_expression(return_numpy=True, **small.READ), on_gpu, atol=1e-3)
    np.testing.assert_allclose(model.get_latent_representation(kind="code"), latent, atol=1e-3)
    np.testing.assert_allclose(model.evaluate_completion(**small.READ), scores, atol=1e-2)
    on_cpu = small.fit(small.build(adata, **setup), max_epochs=4)
    loss = [m.history["autoencoder"]["validation_loss"].to_numpy()[-1, 0] for m in (model, on_cpu)]
    assert loss[0] == pytest.approx(loss[1], rel=0.1)
