"""Training plans of the two phases: losses, optimiser, averaged weights and the best of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from scvi.module.base import LossOutput
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lgdist_scvi._checks import check_numbers, check_share

from ._seeds import seed_device, seeded

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.module._conditions import Phase
    from lgdist_scvi.module._lgdist import LGDiSTModule

WARMUP_STEPS = 50
WEIGHT_DECAY = 2.0
_LAST_RATE = 0.01
"""Learning rate at the end, in units of its peak."""

Weights = list[torch.Tensor]


def check_plan(plan_cls: type[PhasePlan], argument: str, options: Any) -> None:
    """Refuse unusable options of a plan, before anything is trained.

    Parameters
    ----------
    plan_cls
        Plan that is made with them.
    argument, options
        Name of the argument, and what was passed; None for the defaults.

    Raises
    ------
    TypeError
        If it is no dictionary of known options.
    ValueError
        If a value is out of range.
    """
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise TypeError(f"{argument}={options!r} must be a dictionary of options, such as {{'lr': 1e-3}}.")
    inspect.signature(plan_cls).bind(None, **options)
    check_numbers(0, **{name: options[name] for name in ("lr", "weight_decay") if options.get(name) is not None})
    check_share(**{name: options[name] for name in ("ema_decay",) if name in options})


class PhasePlan(pl.LightningModule):
    """Common part of both phases.

    Validation uses an exponential moving average of the weights over steps. The averaged weights of the epoch with the
    lowest validation loss are kept.

    Parameters
    ----------
    module
        Module to train.
    lr, weight_decay
        Peak learning rate, by default :attr:`peak_lr`, which falls to zero during training, and weight decay of the weight
        matrices.
    ema_decay
        Decay per step of the averaged weights.
    """

    phase: Phase
    trained: tuple[str, ...]
    default_steps: int
    peak_lr: float

    def __init__(
        self,
        module: LGDiSTModule,
        lr: float | None = None,
        weight_decay: float = WEIGHT_DECAY,
        ema_decay: float = 0.97,
    ) -> None:
        super().__init__()
        self.module = module
        self.lr, self.weight_decay = self.peak_lr if lr is None else lr, weight_decay
        self._average_over_steps = get_ema_multi_avg_fn(ema_decay)
        self._start: Weights = self._copy()
        self._averaged: Weights = self._copy()
        self._current: Weights = []
        self._best: Weights | None = None
        self._best_loss = math.inf
        self.n_averaged = 0
        """Number of training steps."""
        self.seed = 0
        """Seed of the masks and the noise."""

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: getattr(self.module, name) for name in self.trained})

    def _weights(self) -> Weights:
        return [parameter.data for parameter in self._parts().parameters()]

    def _copy(self) -> Weights:
        return [weight.clone() for weight in self._weights()]

    def _put(self, weights: Weights) -> None:
        """Put weights into the module, on whichever device it is."""
        for own, weight in zip(self._weights(), weights, strict=True):
            own.copy_(weight)

    def restart(self) -> None:
        """Take the weights as they are now for those from before the training."""
        self._start, self._averaged = self._copy(), self._copy()

    def loss(self, batch: Batch) -> LossOutput:
        """Training loss of a minibatch."""
        raise NotImplementedError

    def validation_loss(self, batch: Any) -> LossOutput:
        """Validation loss of a minibatch of the data's validation, without random numbers that differ between epochs."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and a cosine to zero."""
        parameters = list(self._parts().parameters())
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=self.lr,
            betas=(0.9, 0.98),
            # One pass over the weights instead of ten. On GPUs it would not go with clipped gradients in half precision.
            fused=self.device.type == "cpu" or None,
        )

        n_steps = max(1, int(self.trainer.estimated_stepping_batches))
        warm_up = LinearLR(optimizer, 1 / WARMUP_STEPS, total_iters=WARMUP_STEPS - 1)
        decay = CosineAnnealingLR(optimizer, max(1, n_steps - WARMUP_STEPS), eta_min=_LAST_RATE * self.lr)
        schedule = SequentialLR(optimizer, [warm_up, decay], milestones=[WARMUP_STEPS])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw masks and noise that depend on the number of the minibatch among those of all processes, whichever process has it."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        drawn = np.random.SeedSequence([self.seed, self.current_epoch, number]).generate_state(1, np.uint64)
        seed_device(int(drawn[0] >> np.uint64(1)), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """One step."""
        output = self.loss(batch)
        self._log(output, "train", "train_loss")
        return output.loss

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Take a step, and update the averaged weights."""
        super().optimizer_step(*args, **options)
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Update the averaged weights."""
        # By hand: PyTorch's AveragedModel, and Lightning's callback around it, count the steps on the device and wait for it.
        weights = self._weights()
        if self.n_averaged:
            self._average_over_steps(self._averaged, weights, None)
        else:
            self._averaged = [weight.clone() for weight in weights]
        self.n_averaged += 1

    def on_validation_epoch_start(self) -> None:
        """Validate with the averaged weights."""
        self._current = self._copy()
        self._put(self._averaged)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss on held-out entries."""
        self._log(self.validation_loss(batch), "validation", "validation_loss")

    def on_validation_epoch_end(self) -> None:
        """Keep the averaged weights if they are the best, and continue from the current ones."""
        loss = float(self.trainer.callback_metrics.get("validation_loss", math.nan))
        if loss < self._best_loss:
            self._best_loss, self._best = loss, self._copy()
        self._put(self._current)

    def keep_best(self) -> bool:
        """Put the best averaged weights into the module, or the last ones without validation.

        Returns
        -------
        False if they are not finite; then the weights from before the training are put back.
        """
        weights = self._best or self._averaged
        finite = all(bool(torch.isfinite(weight).all()) for weight in weights)
        self._put(weights if finite and self.n_averaged else self._start)
        return finite

    def _log(self, output: LossOutput, split: str, name: str) -> None:
        n_spots = output.n_obs_minibatch
        options = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": n_spots}
        self.log(name, output.loss, prog_bar=True, **options)
        for key, value in (output.extra_metrics or {}).items():
            self.log(f"{key}_{split}", value, **options)


class AutoencoderPlan(PhasePlan):
    """First phase: predict randomly hidden entries from the others. Arguments as of :class:`PhasePlan`."""

    phase = "autoencoder"
    trained = ("encoder", "decoder", "likelihood")
    default_steps = 180
    peak_lr = 2e-3

    def loss(self, batch: Batch) -> LossOutput:
        """Loss on randomly masked entries."""
        return self.module(batch)[2]

    def validation_loss(self, batch: tuple[Batch, torch.Tensor, torch.Tensor]) -> LossOutput:
        """Loss on the held-out entries: `batch` holds what is visible, the true counts and where an entry is held out."""
        seen, counts, held_out = batch
        code = self.module.encode(seen, self.module.condition.visible(seen)).centre
        rates = self.module.decode(code, seen)
        return self.module.expression_loss(seen._replace(counts=counts), rates, held_out)


class DiffusionPlan(PhasePlan):
    """Second phase: learn the distribution of clean codes. Arguments as of :class:`PhasePlan`."""

    phase = "diffusion"
    trained = ("denoiser",)
    default_steps = 100
    peak_lr = 1e-3

    def loss(self, batch: Batch) -> LossOutput:
        """Denoising loss at random noise levels and masks."""
        return self._denoising_loss(batch, training=True)

    def validation_loss(self, batch: Batch) -> LossOutput:
        """Denoising loss of spots that are not trained on, with the same noise levels, masks and noise every time."""
        with seeded(0, self.device):
            return self._denoising_loss(batch, training=False)

    def _denoising_loss(self, batch: Batch, *, training: bool) -> LossOutput:
        module, n_spots = self.module, len(batch.counts)
        t = torch.randint(module.denoiser.schedule.n_steps, (n_spots,), device=self.device)
        shown, visible = module.condition.draw(batch, self.phase, training=training)
        noise = torch.randn(batch.clean.shape, device=self.device)
        with torch.no_grad():
            codes = module.encode(shown, visible)
        return LossOutput(loss=module.denoiser.loss(batch.clean, codes, t, noise), n_obs_minibatch=n_spots)
