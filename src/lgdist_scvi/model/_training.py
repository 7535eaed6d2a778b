"""Training of both phases."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._checks import check_share, check_whole
from lgdist_scvi.data._holdout import holdout_entries
from lgdist_scvi.dataloaders._neighborhood import CodeDataModule, NeighborhoodDataModule
from lgdist_scvi.module._field_codes import fit_field, solve_field
from lgdist_scvi.module._use import refuse_while_trained, trains
from lgdist_scvi.train import AutoencoderPlan, DiffusionPlan
from lgdist_scvi.train._calibration import FOLDED_SPOTS, fit_calibration
from lgdist_scvi.train._plans import check_plan
from lgdist_scvi.train._runner import PhaseRunner
from lgdist_scvi.train._seeds import seeded
from lgdist_scvi.train._statistics import clean_codes, fit_code_statistics, fit_statistics

from ._base import LGDiSTBase
from ._guards import digest_of, entries_of, holds_some_of, sample_of, warn_if_collapsed
from ._history import extended, tables_of
from ._options import N_SAMPLES, Reading
from ._reader import Reader

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from lgdist_scvi.train._plans import PhasePlan


COLLECTED_NUMBERS = 1 << 19
"""Numbers, in data and copies of the weights, from which on the memory of an earlier training is freed at once."""


CALIBRATION_SHARE = 0.5
"""Entries that are held out for the calibration, as a share of those that are held out to be scored."""


class TrainingMixin(LGDiSTBase):
    """Training of the autoencoder and of the diffusion."""

    _autoencoder_plan_cls: type[PhasePlan] = AutoencoderPlan
    _diffusion_plan_cls: type[PhasePlan] = DiffusionPlan

    @property
    def history(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Losses of each phase, by name.

        ``history[phase][metric]`` is a table ``(n_epochs, 1)`` of losses, no unit, indexed by epoch.

        Examples
        --------
        >>> list(model.history)
        ['autoencoder']
        >>> losses = model.history["autoencoder"]["validation_loss"]
        """
        return {phase: tables_of(metrics) for phase, metrics in self.history_.items()}

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
        """Train the autoencoder and fit the latent field; then train the diffusion, where it is used.

        With the latent field the diffusion improves no score, so by default it is trained only for a model without one
        (:data:`~lgdist_scvi.PUBLISHED`), with ``n_rounds > 1``, or if its epochs are given. A second call continues from the weights of the first, with the same held-out entries.

        Parameters
        ----------
        max_epochs
            Epochs of each phase; by default as many as make 180 steps (autoencoder) or 100 (diffusion, where there is no
            latent field), times ``(n / 3000)**0.75`` for ``n > 3000`` spots, and at least 9 or as many as make 900 steps: 9 of
            up to 12,000 spots, 4 of 100,000, 3 of 500,000.
        autoencoder_max_epochs, diffusion_max_epochs
            The same for one phase.
        accelerator, devices
            Hardware to train on, as in :class:`lightning.pytorch.Trainer`.
        batch_size
            Spots per step.
        validation_size
            Share of the observed entries (zeros included, in up to 2,000 spots) to hold out: training never sees them,
            and the weights that predict them best are kept. Half as many others are held out to calibrate the predictions.
            The second phase holds out the same entries, and does not train on the same share of the spots, on which it is
            validated.
        early_stopping
            Stop a phase when the loss on held-out entries no longer falls.
        autoencoder_plan_kwargs, diffusion_plan_kwargs
            Options of the training plans: ``lr``, ``weight_decay`` (by default 2, or
            ``2 * 3000 / n`` for ``n > 3000`` spots), ``ema_decay``.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        MemoryError, RuntimeError
            As :meth:`get_completed_expression`; also if the model is being trained already.
        FloatingPointError
            If training diverges. The previous weights are kept.
        KeyboardInterrupt
            If training is interrupted. What was learnt is kept, and a further call continues from there.
        KeyError, TypeError, ValueError
            If an argument is unknown or out of range, or the AnnData has changed since registration; raised before
            training.

        References
        ----------
        The two phases of :cite:t:`cardenas2025lgdist`; "The latent space", "The latent field" and "The diffusion" of
        :doc:`/method`.

        Examples
        --------
        >>> model = lgdist_scvi.LGDiST(adata)
        >>> model.train(batch_size=64, validation_size=0.1)
        >>> model.is_trained
        True
        """
        refuse_while_trained(self.module)
        # Checked before the long first phase.
        _check_steps(
            batch_size,
            max_epochs=max_epochs,
            autoencoder_max_epochs=autoencoder_max_epochs,
            diffusion_max_epochs=diffusion_max_epochs,
        )
        check_plan(self._autoencoder_plan_cls, "autoencoder_plan_kwargs", autoencoder_plan_kwargs)
        check_plan(self._diffusion_plan_cls, "diffusion_plan_kwargs", diffusion_plan_kwargs)
        shared: dict[str, Any] = {
            "accelerator": accelerator,
            "devices": devices,
            "batch_size": batch_size,
            "validation_size": validation_size,
            "early_stopping": early_stopping,
            **trainer_kwargs,
        }
        self.train_autoencoder(autoencoder_max_epochs or max_epochs, plan_kwargs=autoencoder_plan_kwargs, **shared)
        if self._diffuses or diffusion_max_epochs or max_epochs:
            self.train_diffusion(diffusion_max_epochs or max_epochs, plan_kwargs=diffusion_plan_kwargs, **shared)

    @trains
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
        """Train the first phase, and fit the latent field to the same visible entries.

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
        FloatingPointError, KeyboardInterrupt, RuntimeError
            As :meth:`train`.
        KeyError, TypeError, ValueError
            As :meth:`train`; also if an earlier call held out another share, because entries seen in training cannot be held
            out later.

        References
        ----------
        :cite:t:`cardenas2025lgdist`; count model: :cite:p:`townes2019glmpca`. "The latent space" and "The latent
        field" of :doc:`/method`.

        Examples
        --------
        >>> model = lgdist_scvi.LGDiST(adata)
        >>> model.train_autoencoder()
        >>> prediction = model.get_completed_expression(n_samples=0)  # without the diffusion
        """
        if "autoencoder" in self.history_ and validation_size != self.held_out_:
            raise ValueError(
                f"The autoencoder was trained with validation_size={self.held_out_}, and entries seen in training "
                f"cannot be held out later. Pass the same value, or train a new model with validation_size={validation_size}."
            )
        _check_steps(batch_size, max_epochs=max_epochs)
        check_share(validation_size=validation_size)
        data = self._training_data(validation_size, batch_size)
        trainer_kwargs |= {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping}
        # Before the field is fitted, because it refuses unusable arguments.
        phase = PhaseRunner(
            self, self._autoencoder_plan_cls, "autoencoder", data, max_epochs, plan_kwargs or {}, trainer_kwargs
        )
        if "autoencoder" not in self.history_:
            self.module.to(phase.device)
            fit_statistics(self.module, data.view, self.seed_)
            with seeded(self.seed_, self.module.device):
                fit_field(self.module, data.view, self.seed_)
        try:
            self._run_phase("autoencoder", phase, data)
        finally:
            # Also after an interruption, since what was learnt is kept.
            if "autoencoder" in self.history_:
                # PyTorch's loaders draw a number.
                with seeded(self.seed_):
                    solve_field(self.module, data.view, folded=FOLDED_SPOTS)
                    fit_calibration(self.module, data.for_calibration(), self.seed_)

    @trains
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
            Share of the observed entries, and of the spots, that are held out. It must equal that of the first phase,
            which is the default: both hold out the same entries.
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
        FloatingPointError, KeyboardInterrupt, MemoryError
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
            raise RuntimeError("The diffusion needs a trained autoencoder: call train_autoencoder() first.")
        _check_steps(batch_size, max_epochs=max_epochs)
        if validation_size not in (None, self.held_out_):
            raise ValueError(
                f"The autoencoder was trained with validation_size={self.held_out_}; the diffusion must hold out the "
                "same entries. Leave validation_size out."
            )
        trainer_kwargs |= {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping}
        data = CodeDataModule(self._training_data(self.held_out_, batch_size), self.held_out_, self.seed_)

        def completed_counts(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return (
                Reader(self.module, data.view, Reading(N_SAMPLES, keep_observed=True, scale="counts")).read(rows).values
            )

        for number in range(1, self.n_rounds_ + 1):
            name = "diffusion" if number == 1 else f"diffusion_round_{number}"
            phase = PhaseRunner(
                self,
                self._diffusion_plan_cls,
                name.replace("_", " "),
                data,
                max_epochs,
                plan_kwargs or {},
                trainer_kwargs,
            )
            self.module.to(phase.device)
            data.view.clean = clean_codes(self.module, data.view, completed_counts if number > 1 else None)
            warn_if_collapsed(data.view.clean)
            fit_code_statistics(self.module, data.view, data.train_idx, self.seed_ + number)
            self._run_phase(name, phase, data)

    def _training_data(self, validation_size: float, batch_size: int) -> NeighborhoodDataModule:
        """View without the held-out entries, which depend only on the model's seed and `validation_size`."""
        truth = self._view()
        # Lightning leaves reference cycles that hold the data and copies of the weights. To look for them takes a third of a
        # second, so small ones are left to Python.
        n_weights = sum(parameter.numel() for parameter in self.module.parameters())
        if truth.n_spots * truth.n_genes + 10 * n_weights > COLLECTED_NUMBERS:
            gc.collect()
        if digest_of(truth) != self.trained_digest_ and holds_some_of(
            truth, self.trained_spots_, self.trained_entries_
        ):
            raise ValueError(
                "model.adata has changed since it was trained on: entries held out of the training would be mixed up with others. "
                "Train on the unchanged data, on other spots, or train a new model."
            )
        held_out = holdout_entries(truth.hidden, validation_size, self.seed_)
        # Others than those that are scored.
        calibrated = holdout_entries(truth.hidden | held_out, CALIBRATION_SHARE * validation_size, self.seed_ + 1)
        self.held_out_ = validation_size
        view = truth.without((held_out + calibrated).tocsr())
        return NeighborhoodDataModule(view, truth, held_out, batch_size, calibrated)

    def _run_phase(self, name: str, phase: PhaseRunner, data: NeighborhoodDataModule) -> None:
        history = self.history_
        # Each call has its own seed, reproducible for the same sequence of calls.
        epochs_before = sum(len(metrics.get("train_loss", {}).get("epoch", [])) for metrics in history.values())
        try:
            phase.run(self.seed_ + 1000 * (1 + epochs_before))
        finally:
            # Also after an interruption, to keep what was learnt.
            self.history_ = history  # scvi-tools has replaced it by that of this phase
            # No step: the phase failed to start.
            if phase.n_steps and phase.finite:
                if (digest := digest_of(data.truth)) != self.trained_digest_:
                    self.trained_digest_ = digest
                    self.trained_spots_ = np.concatenate([self.trained_spots_, sample_of(data.truth)])
                    self.trained_entries_ = np.concatenate([self.trained_entries_, entries_of(data.truth)])
                self.history_ = {**history, name: extended(history.get(name, {}), phase.logged)}
        phase.refuse_divergence()


def _check_steps(batch_size: int, **epochs: int | None) -> None:
    check_whole(1, batch_size=batch_size, **{name: value for name, value in epochs.items() if value is not None})
