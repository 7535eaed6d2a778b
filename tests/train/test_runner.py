"""How long a phase lasts, on one device or several."""

from types import SimpleNamespace

import pytest
import torch

from lgdist_scvi.train import AutoencoderPlan, _runner
from lgdist_scvi.train._runner import PhaseRunner


@pytest.mark.parametrize(
    ("n_spots", "devices", "num_nodes", "accumulated", "epochs"),
    # 180 steps: of 23 minibatches per epoch one process takes all, four take 5 each, and sixteen two each.
    [
        (3000, 1, 1, 1, 9),
        (3000, 4, 1, 1, 36),
        (3000, 1, 1, 4, 36),
        (3000, 2, 1, 2, 36),
        (3000, 8, 2, 1, 92),
        (300, 1, 1, 1, 92),
        (300, 4, 1, 1, 182),
    ],
)
def test_devices_share_the_spots_and_not_the_steps(
    small, monkeypatch, n_spots, devices, num_nodes, accumulated, epochs
):
    started = {}
    made = SimpleNamespace(trainer=SimpleNamespace(precision="32-true"))
    monkeypatch.setattr(_runner, "TrainRunner", lambda model, **options: started.update(options) or made)
    monkeypatch.setattr(_runner, "training_devices", lambda *_: (torch.device("cpu"), devices))
    model = small.build(small.tissue())
    data = model._training_data(0.1, 128)
    data.view = SimpleNamespace(n_spots=n_spots)
    data.train_idx = range(n_spots)
    options = {"accelerator": "cpu", "devices": devices, "early_stopping": True, "num_nodes": num_nodes}
    options["accumulate_grad_batches"] = accumulated
    PhaseRunner(model, AutoencoderPlan, "autoencoder", data, None, {}, options)
    assert started["max_epochs"] == epochs
    assert (
        epochs * data.n_steps(devices * num_nodes * accumulated) >= 180
        and epochs % started["check_val_every_n_epoch"] == 0
    )


def test_plans_and_modules_of_a_subclass_are_used(small):
    from lgdist_scvi import LGDiST, LGDiSTModule

    class Module(LGDiSTModule):
        pass

    class Plan(AutoencoderPlan):
        steps = 0

        def loss(self, batch):
            Plan.steps += 1
            return super().loss(batch)

    class Model(LGDiST):
        _module_cls = Module
        _autoencoder_plan_cls = Plan

    adata = small.tissue()
    Model.setup_anndata(adata, layer="counts")
    model = Model(adata, **small.OPTIONS)
    assert type(model.module) is Module
    small.fit(model)
    assert Plan.steps == 4
