"""Training of both phases."""

from __future__ import annotations

import gc
import inspect
import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi.train import TrainRunner

from lgdist_scvi._checks import check_share, check_whole
from lgdist_scvi._compat import PhaseProgressBar, interruptible, logged_history
from lgdist_scvi._memory import smaller_batches_suggested
from lgdist_scvi.data._holdout import holdout_entries
from lgdist_scvi.data._view import SpotView
from lgdist_scvi.dataloaders._neighborhood import NeighborhoodDataModule
from lgdist_scvi.train import AutoencoderPlan, DiffusionPlan
from lgdist_scvi.train._plans import WEIGHT_DECAY, PhasePlan

from ._arguments import BATCH_SIZE, Reading
from ._guards import digest_of, holds_some_of, sample_of, warn_if_collapsed
from ._readout import fit_calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._view import Batch
    from lgdist_scvi.module._lgdist import LGDiSTModule

SECTION_SPOTS = 3000
"""Spots of a Visium section. Up to as many the defaults stay the same; with more, the model learns more from them."""
MIN_EPOCHS = 10
VALIDATIONS = 25
"""Validations over a phase."""
PATIENCE = 6
"""Validations without improvement after which a phase stops."""
STATISTICS_SPOTS = 2048
"""Spots from which the statistics of the input are computed."""
FACTOR_ENTRIES = 1 << 24
"""Entries to which the factor model is fitted: 16,000 spots of 1,024 genes, some GB of memory."""


class TrainingMixin:
    """Training of the autoencoder and of the diffusion."""

    module: LGDiSTModule
    _view: Callable[..., SpotView]
    _complete: Callable[..., Any]
    _batches: Callable[..., Iterator[tuple[slice, Batch]]]
    seed_: int
    n_rounds_: int
    held_out_: float
    trained_digest_: str
    trained_spots_: NDArray[np.uint64]
    history_: dict[str, dict[str, dict[str, list[float]]]]

    @property
    def history(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Losses of each phase, by name.

        ``history[phase][metric]`` is a table ``(n_epochs, 1)`` of losses, no unit, indexed by epoch.

        Examples
        --------
        >>> list(model.history)
        ['autoencoder', 'diffusion']
        >>> losses = model.history["autoencoder"]["validation_loss"]
        """
        return {
            phase: {
                name: pd.DataFrame({name: values["value"]}, index=pd.Index(values["epoch"], name="epoch"))
                for name, values in metrics.items()
            }
            for phase, metrics in self.history_.items()
        }

    def train(
        self,
        max_epochs: int | None = None,
        *,
        autoencoder_max_epochs: int | None = None,
        diffusion_max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 128,
        validation_size: float = 0.05,
        early_stopping: bool = True,
        autoencoder_plan_kwargs: dict[str, Any] | None = None,
        diffusion_plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the autoencoder, then the diffusion in its latent space.

        A second call goes on from the weights of the first, with the same held-out entries.

        Parameters
        ----------
        max_epochs
            Passes through the spots in each phase; by default as many as make 600 steps (autoencoder) or 400
            (diffusion), of ``n > 3000`` spots ``(n / 3000)**0.75`` times as many, and at least 10.
        autoencoder_max_epochs, diffusion_max_epochs
            The same for one phase.
        accelerator, devices
            Where to train, as in :class:`lightning.pytorch.Trainer`.
        batch_size
            Spots per step.
        validation_size
            Share of the observed entries (zeros included, in up to 2,000 spots) that are held out: training never
            sees them, and the weights kept are those that predict them best. The same entries in both phases.
        early_stopping
            Stop a phase when the held-out entries are no longer predicted better.
        autoencoder_plan_kwargs, diffusion_plan_kwargs
            Options of the training plans: ``lr``, ``weight_decay`` (by default 2, of ``n > 3000`` spots
            ``2 * 3000 / n``), ``ema_decay``.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        FloatingPointError
            If the training diverges. The weights from before are kept.
        KeyboardInterrupt
            If it is interrupted. What was learnt is kept, and a further call goes on from there.
        KeyError, TypeError, ValueError
            If an argument is unknown or out of range, or the spots are not as they were registered; before anything is
            trained.

        References
        ----------
        The two phases of :cite:t:`cardenas2025lgdist`; "The latent space", "The factor model" and "The diffusion" of
        :doc:`/method`.

        Examples
        --------
        >>> model = lgdist_scvi.LGDiST(adata)
        >>> model.train(batch_size=64, validation_size=0.1)
        >>> model.is_trained
        True
        """
        # Before the first phase takes its time.
        _check_steps(
            batch_size,
            max_epochs=max_epochs,
            autoencoder_max_epochs=autoencoder_max_epochs,
            diffusion_max_epochs=diffusion_max_epochs,
        )
        for plan, plan_kwargs in ((AutoencoderPlan, autoencoder_plan_kwargs), (DiffusionPlan, diffusion_plan_kwargs)):
            inspect.signature(plan).bind(self.module, **(plan_kwargs or {}))
        shared: dict[str, Any] = {
            "accelerator": accelerator,
            "devices": devices,
            "batch_size": batch_size,
            "validation_size": validation_size,
            "early_stopping": early_stopping,
            **trainer_kwargs,
        }
        self.train_autoencoder(autoencoder_max_epochs or max_epochs, plan_kwargs=autoencoder_plan_kwargs, **shared)
        self.train_diffusion(diffusion_max_epochs or max_epochs, plan_kwargs=diffusion_plan_kwargs, **shared)

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 128,
        validation_size: float = 0.05,
        early_stopping: bool = True,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the first phase, and fit the factor model to what it may see.

        Parameters
        ----------
        max_epochs, accelerator, devices, batch_size, validation_size, early_stopping
            As in :meth:`train`.
        plan_kwargs
            As `autoencoder_plan_kwargs` of :meth:`train`.
        **trainer_kwargs
            As in :meth:`train`.

        Raises
        ------
        FloatingPointError, KeyboardInterrupt
            As :meth:`train`.
        KeyError, TypeError, ValueError
            As :meth:`train`; also if an earlier call held out another share: what it has trained on cannot be held out
            any more.

        References
        ----------
        :cite:t:`cardenas2025lgdist`; factor model: :cite:p:`townes2019glmpca`. "The latent space" and "The factor
        model" of :doc:`/method`.

        Examples
        --------
        >>> model = lgdist_scvi.LGDiST(adata)
        >>> model.train_autoencoder()
        >>> prediction = model.get_completed_expression(n_samples=0)  # without the diffusion
        """
        if "autoencoder" in self.history_ and validation_size != self.held_out_:
            raise ValueError(
                f"The autoencoder was trained with validation_size={self.held_out_}, and what it has seen cannot be held "
                f"out any more. Pass the same, or train a new model with validation_size={validation_size}."
            )
        _check_steps(batch_size, max_epochs=max_epochs)
        check_share(validation_size=validation_size)
        data = self._training_data(validation_size, batch_size)
        if "autoencoder" not in self.history_:
            self.module.fit_statistics(data.view, self._statistics_spots(data))
            with seeded(self.seed_):
                self.module.fit_factors(data.view, self._some_spots(data, FACTOR_ENTRIES // data.view.n_genes))
        trainer_kwargs |= {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping}
        try:
            self._run_phase(AutoencoderPlan, "autoencoder", data, max_epochs, plan_kwargs or {}, trainer_kwargs)
        finally:
            # Also after an interruption, since what was learnt is kept.
            if "autoencoder" in self.history_:
                with seeded(self.seed_):
                    fit_calibration(self.module, data, self.seed_)

    def train_diffusion(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 128,
        validation_size: float | None = None,
        early_stopping: bool = True,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the second phase, the distribution of the codes of fully visible spots.

        Parameters
        ----------
        max_epochs, accelerator, devices, batch_size
            As in :meth:`train`.
        validation_size
            Share of the observed entries that are held out. It must be that of the first phase, which is the default:
            the entries are the same.
        early_stopping
            As in :meth:`train`.
        plan_kwargs
            As `diffusion_plan_kwargs` of :meth:`train`.
        **trainer_kwargs
            As in :meth:`train`.

        Raises
        ------
        RuntimeError
            If the autoencoder has not been trained.
        FloatingPointError, KeyboardInterrupt
            As :meth:`train`.
        KeyError, TypeError, ValueError
            As :meth:`train`; also if `validation_size` differs from that of the first phase.

        References
        ----------
        :cite:t:`cardenas2025lgdist`; diffusion transformer: :cite:p:`peebles2023dit`; noise schedule:
        :cite:p:`nichol2021improved`, equation 17. "The diffusion" of :doc:`/method`.

        Examples
        --------
        >>> model = lgdist_scvi.LGDiST(adata)
        >>> model.train_autoencoder()
        >>> model.train_diffusion(plan_kwargs={"lr": 5e-4})
        """
        if "autoencoder" not in self.history_:
            raise RuntimeError("The diffusion works in the latent space of the autoencoder: call train_autoencoder().")
        _check_steps(batch_size, max_epochs=max_epochs)
        if validation_size not in (None, self.held_out_):
            raise ValueError(
                f"The autoencoder was trained with validation_size={self.held_out_}; the diffusion must hold out the "
                "same entries. Leave validation_size out."
            )
        trainer_kwargs |= {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping}
        data = self._training_data(self.held_out_, batch_size)
        for number in range(1, self.n_rounds_ + 1):
            data.view.clean = self._clean_codes(data.view, completed=number > 1)
            warn_if_collapsed(data.view.clean)
            with seeded(self.seed_ + number):
                self.module.fit_code_statistics(data.view, self._statistics_spots(data))
            name = "diffusion" if number == 1 else f"diffusion_round_{number}"
            self._run_phase(DiffusionPlan, name, data, max_epochs, plan_kwargs or {}, dict(trainer_kwargs))

    @torch.no_grad()
    def _clean_codes(self, view: SpotView, *, completed: bool) -> NDArray[np.float32]:
        """Codes of all spots from all that may be seen of them, ``(n_spots, n_latent)``.

        The autoencoder rests while the diffusion is trained, so they are computed once. From the second round on the
        completed spots teach what a clean code is; what is around them stays as it was measured.
        """
        codes = []
        for place, batch in self._batches(view, np.arange(view.n_spots), BATCH_SIZE, silent=True):
            if completed:
                counts = self._complete(view, np.arange(view.n_spots)[place], Reading(scale="counts"))
                counts = torch.from_numpy(counts).to(self.module.device)
                batch = batch._replace(counts=counts, observed=torch.ones_like(batch.observed))
            codes.append(self.module.encode(batch, batch.observed).centre.cpu().numpy())
        return np.concatenate(codes)

    def _statistics_spots(self, data: NeighborhoodDataModule) -> NDArray[np.int64]:
        return self._some_spots(data, STATISTICS_SPOTS)

    def _some_spots(self, data: NeighborhoodDataModule, n_spots: int) -> NDArray[np.int64]:
        return np.sort(np.random.default_rng(self.seed_).permutation(data.n_train)[:n_spots])

    def _training_data(self, validation_size: float, batch_size: int) -> NeighborhoodDataModule:
        """View without the held-out entries, which depend only on the model's seed and `validation_size`."""
        # Lightning leaves what it has trained with in cycles of references, arrays and all, which Python might keep for long.
        gc.collect()
        truth = self._view()
        if digest_of(truth) != self.trained_digest_ and holds_some_of(truth, self.trained_spots_):
            raise ValueError(
                "model.adata holds spots that were trained on, but not as they were then: entries held out of the training "
                "would be mixed up with others. Train on the same data again, on other spots, or train a new model."
            )
        held_out = holdout_entries(truth.hidden, validation_size, self.seed_)
        self.held_out_ = validation_size
        return NeighborhoodDataModule(truth.without(held_out), truth, held_out, batch_size)

    def _run_phase(
        self,
        plan_cls: type[PhasePlan],
        name: str,
        data: NeighborhoodDataModule,
        max_epochs: int | None,
        plan_kwargs: dict[str, Any],
        trainer_kwargs: dict[str, Any],
    ) -> None:
        title, steps = name.replace("_", " "), len(data.train_dataloader())
        size = relative_size(data.n_train)
        epochs = max_epochs or max(MIN_EPOCHS, math.ceil(plan_cls.default_steps * size**0.75 / steps))
        self.module.phase = plan_cls.phase
        # The runner leaves the module in evaluation mode, in which the next phase would train.
        self.module.train()
        plan = plan_cls(self.module, **({"weight_decay": WEIGHT_DECAY / size} | plan_kwargs))
        # What rests gets no gradient, which processes that train together would wait for.
        for child, part in self.module.named_children():
            part.requires_grad_(child in plan_cls.trained)
        early_stopping = bool(trainer_kwargs.pop("early_stopping")) and data.n_val > 0
        # A list of its own: the trainer adds to it, and the user's serves both phases.
        callbacks = list(trainer_kwargs.pop("callbacks", None) or [])
        if trainer_kwargs.get("enable_progress_bar", True):
            callbacks.append(PhaseProgressBar(title.capitalize()))
        defaults = {
            "check_val_every_n_epoch": max(1, round(epochs / VALIDATIONS)),
            "early_stopping_monitor": "validation_loss",
            "early_stopping_patience": PATIENCE,
            "benchmark": False,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "simple_progress_bar": False,
        }
        runner = TrainRunner(
            self,
            training_plan=plan,
            data_splitter=data,
            max_epochs=epochs,
            early_stopping=early_stopping,
            callbacks=callbacks,
            **(defaults | trainer_kwargs),
        )
        history = self.history_
        try:
            # Another seed for each call, the same for the same sequence of calls.
            epochs_before = sum(len(metrics.get("train_loss", {}).get("epoch", [])) for metrics in history.values())
            with seeded(self.seed_ + 1000 * (1 + epochs_before)), warnings.catch_warnings():
                # The frozen autoencoder is meant to be in evaluation mode.
                warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
                with interruptible(), smaller_batches_suggested():
                    runner()
                # The first process alone has logged.
                logged = runner.trainer.strategy.broadcast(logged_history(runner.trainer))
        except BaseException as error:
            logged = logged_history(runner.trainer)
            if isinstance(error, KeyboardInterrupt):
                error.add_note(
                    f"The training ({title}) was interrupted. What it has learnt in {plan.n_averaged} steps is "
                    "kept, and train() goes on from there."
                )
            raise
        finally:
            # Also after an interruption: what was learnt is kept.
            finite = plan.keep_best()
            self.module.requires_grad_(True)
            self.module.phase = "autoencoder"
            self.module.eval()
            self.history_ = history  # scvi-tools has put that of this phase alone in its place
            # Without a step nothing was trained: the phase failed to start.
            if plan.n_averaged and finite:
                if (digest := digest_of(data.truth)) != self.trained_digest_:
                    self.trained_digest_ = digest
                    self.trained_spots_ = np.concatenate([self.trained_spots_, sample_of(data.truth)])
                self.history_ = {**history, name: _extended(history.get(name, {}), logged)}
        if not finite:
            raise FloatingPointError(
                f"The training ({title}) diverged: the weights are not finite, and those from before are kept. "
                f"Pass a lower learning rate, {plan_cls.phase}_plan_kwargs={{'lr': ...}}; it was {plan.lr}."
            )


def _check_steps(batch_size: int, **epochs: int | None) -> None:
    check_whole(1, batch_size=batch_size, **{name: value for name, value in epochs.items() if value is not None})


def relative_size(n_spots: int) -> float:
    """Spots in units of a section of Visium, at least 1."""
    return max(1.0, n_spots / SECTION_SPOTS)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch inside the block only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _extended(
    old: dict[str, dict[str, list[float]]], new: dict[str, pd.DataFrame]
) -> dict[str, dict[str, list[float]]]:
    """History with the epochs of a further call appended."""
    merged = dict(old)
    for name, table in new.items():
        epochs, values = [int(epoch) for epoch in table.index], [float(value) for value in table.iloc[:, 0]]
        before = old.get(name, {"epoch": [], "value": []})
        start = before["epoch"][-1] + 1 if before["epoch"] else 0
        merged[name] = {"epoch": before["epoch"] + [start + e for e in epochs], "value": before["value"] + values}
    return merged
