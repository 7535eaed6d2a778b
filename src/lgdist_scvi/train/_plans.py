"""Training plans of the two phases: losses, optimiser, and selection of averaged weights."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from scvi.module.base import LossOutput
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.module._conditions import Phase
    from lgdist_scvi.module._lgdist import LGDiSTModule

    ValidationBatch = tuple[Batch, torch.Tensor, torch.Tensor]

WARMUP_STEPS = 50
WEIGHT_DECAY = 2.0


class PhasePlan(pl.LightningModule):
    """Common part of both phases.

    Validation uses an exponential moving average of the weights over steps. The averaged weights of the epoch with the
    lowest validation loss are kept.

    Parameters
    ----------
    module
        Module to train.
    lr, weight_decay
        Peak learning rate, which falls to zero during training, and weight decay of the weight matrices.
    ema_decay
        Decay per step of the averaged weights.
    """

    phase: Phase
    trained: tuple[str, ...]
    default_steps: int

    def __init__(
        self,
        module: LGDiSTModule,
        lr: float = 1e-3,
        weight_decay: float = WEIGHT_DECAY,
        ema_decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.module = module
        self.lr, self.weight_decay = lr, weight_decay
        self._average = AveragedModel(self._parts(), multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self._start = copy.deepcopy(self._parts().state_dict())
        self._best: dict | None = None
        self._best_loss = math.inf

    @property
    def n_averaged(self) -> int:
        """Number of training steps."""
        return int(self._average.n_averaged)

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: getattr(self.module, name) for name in self.trained})

    def loss(self, batch: Batch) -> LossOutput:
        """Training loss of a minibatch."""
        raise NotImplementedError

    def validation_loss(self, batch: ValidationBatch) -> LossOutput:
        """Validation loss of a minibatch, without random numbers that differ between epochs."""
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
        )

        n_steps = max(1, self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.01, _cosine(step / n_steps))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """One step."""
        output = self.loss(batch)
        self._log(output, "train", "train_loss")
        return output.loss

    def on_train_batch_end(self, *args: object) -> None:
        """Update the averaged weights."""
        self._average.update_parameters(self._parts())

    def on_validation_epoch_start(self) -> None:
        """Validate with the averaged weights."""
        self._current = copy.deepcopy(self._parts().state_dict())
        self._parts().load_state_dict(self._average.module.state_dict())

    def validation_step(self, batch: ValidationBatch, batch_idx: int) -> None:
        """Log the loss on held-out entries."""
        self._log(self.validation_loss(batch), "validation", "validation_loss")

    def on_validation_epoch_end(self) -> None:
        """Store the averaged weights if they are the best so far, and continue from the current ones."""
        loss = float(self.trainer.callback_metrics.get("validation_loss", math.nan))
        if loss < self._best_loss:
            self._best_loss, self._best = loss, copy.deepcopy(self._parts().state_dict())
        self._parts().load_state_dict(self._current)

    def keep_best(self) -> bool:
        """Load the best averaged weights into the module, or the last ones without validation.

        Returns
        -------
        False if they are not finite; then the weights from before training are restored.
        """
        weights = self._best or self._average.module.state_dict()
        finite = all(bool(torch.isfinite(value).all()) for value in weights.values())
        self._parts().load_state_dict(weights if finite and self.n_averaged else self._start)
        return finite

    def _log(self, output: LossOutput, split: str, name: str) -> None:
        n_spots = output.n_obs_minibatch
        # Distributed processes must agree on the best epoch.
        options = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": n_spots}
        self.log(name, output.loss, prog_bar=True, **options)
        for key, value in (output.extra_metrics or {}).items():
            self.log(f"{key}_{split}", value, **options)


class AutoencoderPlan(PhasePlan):
    """First phase: predict randomly hidden entries from the others; arguments of :class:`PhasePlan`."""

    phase = "autoencoder"
    trained = ("encoder", "decoder", "likelihood")
    default_steps = 600

    def loss(self, batch: Batch) -> LossOutput:
        """Loss on randomly masked entries."""
        return self.module(batch)[2]

    def validation_loss(self, batch: ValidationBatch) -> LossOutput:
        """Loss on the held-out entries, which are hidden in the minibatch."""
        seen, counts, held_out = batch
        code = self.module.encode(seen, self.module.condition.visible(seen)).centre
        rates = self.module.decode(code, seen)
        return self.module.expression_loss(seen._replace(counts=counts), rates, held_out)


class DiffusionPlan(PhasePlan):
    """Second phase: learn the distribution of clean codes; arguments of :class:`PhasePlan`."""

    phase = "diffusion"
    trained = ("denoiser",)
    default_steps = 400

    def loss(self, batch: Batch) -> LossOutput:
        """Denoising loss at random noise levels and masks."""
        n_steps = self.module.denoiser.schedule.n_steps
        t = torch.randint(n_steps, (len(batch.counts),), device=self.device)
        shown, visible = self.module.condition.draw(batch, self.phase, training=True)
        return self._loss(shown, visible, t, self._noise(batch, None))

    def validation_loss(self, batch: ValidationBatch) -> LossOutput:
        """Denoising loss with fixed noise levels, masks and noise."""
        seen = batch[0]
        generator = torch.Generator().manual_seed(0)
        n_steps = self.module.denoiser.schedule.n_steps
        t = torch.randint(n_steps, (len(seen.counts),), generator=generator).to(self.device)
        shown = torch.rand(seen.counts.shape, generator=generator).to(self.device) >= 0.25
        visible = self.module.condition.visible(seen) & shown
        return self._loss(seen, visible, t, self._noise(seen, generator))

    def _loss(self, batch: Batch, visible: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> LossOutput:
        with torch.no_grad():
            codes = self.module.encode(batch, visible)
        return LossOutput(loss=self.module.denoiser.loss(batch.clean, codes, t, noise), n_obs_minibatch=len(noise))

    def _noise(self, batch: Batch, generator: torch.Generator | None) -> torch.Tensor:
        shape = (len(batch.counts), len(self.module.denoiser.code_std))
        if generator is None:
            return torch.randn(shape, device=self.device)
        return torch.randn(shape, generator=generator).to(self.device)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
