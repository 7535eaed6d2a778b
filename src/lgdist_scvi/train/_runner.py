"""Runs one phase of the training through scvi-tools' runner, and keeps what was learnt whatever ends it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from scvi.train import TrainRunner

from lgdist_scvi._checks import check_whole
from lgdist_scvi._compat import PhaseProgressBar, interruptible, logged_history, training_devices
from lgdist_scvi._memory import smaller_batches_suggested
from lgdist_scvi._quiet import quiet

from ._plans import WEIGHT_DECAY, PhasePlan, check_plan
from ._seeds import seeded

if TYPE_CHECKING:
    import pandas as pd
    from scvi.model.base import BaseModelClass

    from lgdist_scvi.dataloaders._neighborhood import NeighborhoodDataModule

SECTION_SPOTS = 3000
"""Spots of a Visium section. With more spots, defaults of training and the number of factors change."""
MIN_EPOCHS, MIN_STEPS = 9, 900
"""Epochs that a phase has at least, or steps if these are fewer: of a large tissue less than each of its spots says enough."""
VALIDATIONS = 25
"""Number of validations per phase; fewer in one of few epochs, of which each would take a quarter longer."""
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Precisions of Lightning in which the weights are in single precision."""
PROCESSES_PER_CORE = 8
"""Processes on each core of a CPU beyond which a training is refused: they would take the machine."""
PATIENCE = 6
"""Validations without improvement after which a phase stops."""


def relative_size(n_spots: int) -> float:
    """Number of spots in units of a Visium section, at least 1."""
    return max(1.0, n_spots / SECTION_SPOTS)


class PhaseRunner:
    """One phase of the training of a model.

    Parameters
    ----------
    model
        Model whose module is trained.
    plan_cls
        Plan of the phase.
    title
        What the progress bar and errors call the phase.
    data
        Training data.
    max_epochs
        Passes through the spots; None for the default.
    plan_kwargs
        Options of the plan.
    trainer_kwargs
        ``early_stopping``, and arguments of :class:`scvi.train.Trainer`.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or unusable.
    """

    def __init__(
        self,
        model: BaseModelClass,
        plan_cls: type[PhasePlan],
        title: str,
        data: NeighborhoodDataModule,
        max_epochs: int | None,
        plan_kwargs: dict[str, Any],
        trainer_kwargs: dict[str, Any],
    ) -> None:
        self.module, self.title, self._data = model.module, title, data
        self.logged: dict[str, pd.DataFrame] = {}
        """What the logger has recorded of the phase, by metric."""
        self.finite = True
        """Whether the weights are finite."""
        trainer_kwargs = dict(trainer_kwargs)
        self.device, n_devices = training_devices(trainer_kwargs["accelerator"], trainer_kwargs["devices"])
        parts = {name: trainer_kwargs.get(name, 1) for name in ("num_nodes", "accumulate_grad_batches")}
        check_whole(1, **parts)
        n_steps = data.n_steps(n_devices * math.prod(parts.values()))
        size = relative_size(data.view.n_spots)
        _check_trainer(trainer_kwargs, self.device, n_devices, data.n_val)
        fewest = min(MIN_EPOCHS, math.ceil(MIN_STEPS / n_steps))
        epochs = max_epochs or max(fewest, math.ceil(plan_cls.default_steps * size**0.75 / n_steps))
        interval = max(1, round(epochs / VALIDATIONS), min(3, epochs // 3))
        if max_epochs is None:
            epochs = interval * math.ceil(epochs / interval)  # so that what the last has learnt is validated
        check_plan(plan_cls, "plan_kwargs", plan_kwargs)
        self.plan = plan_cls(self.module, **({"weight_decay": WEIGHT_DECAY / size} | plan_kwargs))
        early_stopping = bool(trainer_kwargs.pop("early_stopping")) and data.n_val > 0
        # A copy, because the trainer appends to it and both phases use the list of the user.
        callbacks = trainer_kwargs.pop("callbacks", None) or []
        callbacks = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
        if other := [callback for callback in callbacks if not isinstance(callback, Callback)]:
            raise TypeError(f"callbacks={other!r} must be callbacks of lightning.pytorch; leave them out.")
        if trainer_kwargs.get("enable_progress_bar", True):
            callbacks.append(PhaseProgressBar(title.capitalize()))
        loggers = trainer_kwargs.get("logger")
        loggers = loggers if isinstance(loggers, list | tuple) else [loggers]
        if other := [logger for logger in loggers if not isinstance(logger, bool | Logger | None)]:
            raise TypeError(f"logger={other!r} must be True, False, or loggers of lightning.pytorch; leave it out.")
        defaults = {
            "check_val_every_n_epoch": interval,
            "early_stopping_monitor": "validation_loss",
            "early_stopping_patience": PATIENCE,
            "benchmark": False,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "simple_progress_bar": False,
            "use_distributed_sampler": False,  # the data are distributed already
        }
        try:
            with quiet():
                self._runner = TrainRunner(
                    model,
                    training_plan=self.plan,
                    data_splitter=data,
                    max_epochs=epochs,
                    early_stopping=early_stopping,
                    callbacks=callbacks,
                    **(defaults | trainer_kwargs),
                )
        except Exception as error:  # Lightning raises many kinds
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f"The trainer of Lightning refuses an argument: {' '.join(str(error).split()).rstrip('.')}. Correct it or leave it "
                f"out; given were {', '.join(sorted(trainer_kwargs))}."
            ) from error
        if (precision := self._runner.trainer.precision) not in PRECISIONS:
            # Lightning would convert the weights, and leave them so after a failure.
            raise ValueError(
                f"precision={precision!r} is not supported, because weights and data are in single precision; leave "
                f"precision out, or choose one of {', '.join(map(repr, PRECISIONS))}."
            )

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return self.plan.n_averaged

    def run(self, seed: int) -> None:
        """Train, and put the best weights into the module, also where an error or an interruption ends it.

        Parameters
        ----------
        seed
            Seed of the masks, the noise and the order of the spots.

        Raises
        ------
        KeyboardInterrupt
            If it was interrupted.
        """
        trainer = self._runner.trainer
        self.plan.seed = self._data.seed = seed
        self.plan.restart()
        try:
            self.module.phase = self.plan.phase
            # The runner leaves the module in evaluation mode, in which the next phase would train.
            self.module.train()
            # Frozen parts must not expect gradients, for which processes of a distributed training would wait.
            for child, part in self.module.named_children():
                part.requires_grad_(child in self.plan.trained)
            with seeded(seed, self.device):
                with quiet(), interruptible(), smaller_batches_suggested():
                    self._runner()
                # Only the first process logs.
                self.logged = trainer.strategy.broadcast(logged_history(trainer))
        except BaseException as error:
            self.logged = logged_history(trainer)
            if isinstance(error, KeyboardInterrupt):
                error.add_note(
                    f"The training ({self.title}) was interrupted. What it learnt in {self.n_steps} steps is kept, and "
                    "train() continues from there."
                )
            raise
        finally:
            self.finite = self.plan.keep_best()
            self.module.requires_grad_(True)
            self.module.phase = "autoencoder"
            self.module.eval()

    def refuse_divergence(self) -> None:
        """Raise a FloatingPointError if the weights are not finite."""
        if not self.finite:
            raise FloatingPointError(
                f"The training ({self.title}) diverged: the weights are not finite; the previous weights are kept. "
                f"Pass a lower learning rate, {self.plan.phase}_plan_kwargs={{'lr': ...}}; it was {self.plan.lr}."
            )


def _check_trainer(options: dict[str, Any], device: torch.device, n_devices: int, n_validated: int) -> None:
    """Refuse arguments of the trainer with which nothing would be learnt or kept, before anything is trained."""
    if options.get("fast_dev_run"):
        raise ValueError("fast_dev_run is not supported, because nothing of it is kept; pass max_epochs=1 instead.")
    for name in ("limit_train_batches", "max_steps"):
        if (value := options.get(name)) is not None and value == 0:
            raise ValueError(f"{name}=0 leaves nothing to train on; leave it out.")
    if options.get("limit_val_batches") == 0 and options.get("early_stopping") and n_validated:
        raise ValueError(
            "limit_val_batches=0 leaves nothing to stop early by; leave it out, or pass early_stopping=False as well."
        )
    if device.type == "cpu" and n_devices > PROCESSES_PER_CORE * (cores := os.cpu_count() or 1):
        raise ValueError(f"devices={n_devices} would start as many processes on {cores} CPU cores; pass devices=1.")
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode() is on, in which nothing can be trained; leave it first.")
