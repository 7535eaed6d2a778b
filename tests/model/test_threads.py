"""Threads: the values of one after the other, or a refusal; and nothing of the session is left changed."""

import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lgdist_scvi import LGDiST
from lgdist_scvi.data._view import SpotView


def trained_model(small, seed=3):
    return small.fit(small.build(small.tissue(n_spots=120), {"seed": seed}), max_epochs=1)


def same_weights(one, other):
    state = other.module.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.module.state_dict().items())


def test_two_models_at_once_are_those_of_one_after_the_other(small):
    # In a thread too: each thread has its own number of threads of PyTorch, which changes the last digits.
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(trained_model, small).result()
    filters, state = list(warnings.filters), torch.get_rng_state()
    # Both are built before either is trained.
    both = threading.Barrier(2)

    def build_and_train(_):
        model = small.build(small.tissue(n_spots=120), {"seed": 3})
        both.wait(60)
        return small.fit(model, max_epochs=1)

    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(build_and_train, range(2)))
    assert same_weights(models[0], alone) and same_weights(models[1], alone)
    assert warnings.filters == filters and torch.equal(torch.get_rng_state(), state)


def test_loads_at_once(trained, tmp_path, monkeypatch):
    trained.save(tmp_path / "model", save_anndata=True)
    before, inside = dict(os.environ), []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (inside.append(dict(os.environ)), load(*a, **k))[1])
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: LGDiST.load(tmp_path / "model"), range(4)))
    assert all(same_weights(model, trained) for model in models)
    assert dict(os.environ) == before and all(environment == before for environment in inside)


def test_spots_that_are_loaded_twice_are_registered_apart(trained, tmp_path, monkeypatch):
    trained.save(tmp_path / "model", save_anndata=True)
    both, register = threading.Barrier(2, timeout=60), LGDiST.register_manager
    monkeypatch.setattr(LGDiST, "register_manager", lambda manager: (register(manager), both.wait()))
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda _: LGDiST.load(tmp_path / "model"), range(2)))
    assert models[0].adata is not models[1].adata and all(same_weights(model, trained) for model in models)


USES = {
    "read": lambda model, path: model.get_completed_expression(silent=True),
    "represent": lambda model, path: model.get_latent_representation(),
    "score": lambda model, path: model.evaluate_completion(silent=True),
    "write": lambda model, path: model.write_completed(path / "a.h5ad", silent=True),
    "save": lambda model, path: model.save(path / "model"),
    "train": lambda model, path: model.train(1, accelerator="cpu"),
    "train one phase": lambda model, path: model.train_autoencoder(1, accelerator="cpu"),
}


def test_a_model_that_is_trained_is_not_used(small, tmp_path):
    model = trained_model(small)
    refused = []

    class Use(Callback):
        def on_train_batch_end(self, *_, **__):
            with ThreadPoolExecutor(1) as pool:
                for name, use in USES.items():
                    for run in (use, lambda *a, use=use: pool.submit(use, *a).result(60)):
                        with pytest.raises(RuntimeError, match=r"is being trained.*wait until train\(\) returns"):
                            run(model, tmp_path)
                        refused.append(name)

    model.train_autoencoder(
        1, batch_size=128, validation_size=0.1, accelerator="cpu", enable_progress_bar=False, callbacks=[Use()]
    )
    assert refused == [name for name in USES for _ in range(2)] and os.listdir(tmp_path) == []
    assert np.isfinite(model.get_completed_expression(return_numpy=True, silent=True)).all()


def test_training_that_begins_while_a_model_is_read(small, tmp_path, monkeypatch):
    model = trained_model(small)
    gather, begun = SpotView.gather, []

    def gather_then_train(self, rows, **options):
        batch = gather(self, rows, **options)
        if not begun:
            begun.append(True)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(small.fit, model, max_epochs=1).result(120)
        return batch

    monkeypatch.setattr(SpotView, "gather", gather_then_train)
    with pytest.raises(RuntimeError, match="began to train the model while it was read"):
        model.write_completed(tmp_path / "a.h5ad", silent=True)
    assert not (tmp_path / "a.h5ad").exists()
    model.write_completed(tmp_path / "b.h5ad", silent=True)


FORKED = """
import os, signal, sys, warnings
import torch
from lgdist_scvi import LGDiST

warnings.simplefilter("ignore")
torch.set_num_threads(2)
model = LGDiST.load(sys.argv[1])
model.write_completed(sys.argv[2] + "/parent.zarr", silent=True)
pid = os.fork()
if pid == 0:
    signal.alarm(120)  # kills what hangs
    model.write_completed(sys.argv[2] + "/child.zarr", silent=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_process_completes(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    command = [sys.executable, "-c", FORKED, str(tmp_path / "model"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, check=False, text=True)
    assert run.returncode == 0, run.stderr
    parent, child = (ad.read_zarr(tmp_path / f"{name}.zarr").layers["lgdist"] for name in ("parent", "child"))
    np.testing.assert_allclose(child, parent, atol=1e-5)
