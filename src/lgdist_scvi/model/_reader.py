"""Reads the predictions of a trained module for the spots of a view, a minibatch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lgdist_scvi._compat import track
from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi._memory import require_memory, smaller_batches_suggested
from lgdist_scvi.dataloaders._ahead import ahead
from lgdist_scvi.module._field_codes import solve_field
from lgdist_scvi.module._joint import ExpressionSamples
from lgdist_scvi.module._posterior import Posterior, Prediction, draw_noise, posterior, predict
from lgdist_scvi.module._read_outs import READ_OUTS
from lgdist_scvi.module._use import Steady

from ._options import N_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._view import SpotView
    from lgdist_scvi.module._lgdist import LGDiSTModule

    from ._options import Reading, Scale


class Completed(NamedTuple):
    """Completed values of a minibatch."""

    place: slice
    """Places of its spots among those that were asked for."""
    values: NDArray[np.float32]
    """Values in the unit of the reading's scale, ``(n_spots, n_genes)``."""
    std: NDArray[np.float32]
    """Their standard deviations in the same unit, ``(n_spots, n_genes)``."""


class Reader:
    """A trained module, the spots to read and how to read them.

    Parameters
    ----------
    module
        Trained module.
    view
        What may be seen of the spots.
    reading
        Options of the read-out.
    n_draws
        Joint samples that :meth:`samples` makes.
    """

    def __init__(self, module: LGDiSTModule, view: SpotView, reading: Reading, n_draws: int = 0) -> None:
        self._module, self._view, self._reading = module, view, reading
        self._steady = Steady(module)
        # Of all spots, whichever are read: each is a part of the surroundings of others.
        self._folds = READ_OUTS[reading.read_out].given_detection
        n_folded = view.n_spots if self._folds else 0
        solve_field(module, view, folded=n_folded, spread=reading.return_std, n_draws=n_draws, seed=reading.seed)
        self._noise: torch.Tensor | None = None
        if reading.n_samples:
            _require_room(module, reading, view.n_spots)
            n_latent = len(module.denoiser.code_std)
            self._noise = draw_noise(reading.n_samples, n_latent, reading.seed).to(module.device)

    def batches(
        self, rows: NDArray[np.int64], genes: NDArray[np.int64] | None = None, *, silent: bool = True
    ) -> Iterator[Completed]:
        """Completed values of some spots.

        Parameters
        ----------
        rows
            Spots to read, ``(n_rows,)``.
        genes
            Numbers of the genes to read, ``(n_chosen,)``; all by default.
        silent
            Show no progress bar.

        Raises
        ------
        FloatingPointError
            If a value is not finite.
        """
        chosen = None if genes is None else torch.from_numpy(genes)
        read_out, scale = READ_OUTS[self._reading.read_out], self._reading.scale
        for place, batch in self._gathered(rows, silent):
            prediction = self._predict(batch, genes=chosen, detected=read_out.given_detection)
            rate, variance = read_out.read(prediction, self._module)
            known, depth = prediction.batch, prediction.batch.depth[:, None]
            if self._reading.keep_observed:
                measured = known.observed & (known.counts > 0)
                rate = torch.where(measured, known.counts / depth, rate)
                variance = torch.where(measured, 0, variance)
            std = variance.sqrt()
            if scale == "log1p":
                std = std * TARGET_SUM / (1 + rate * TARGET_SUM)
            elif scale == "counts":
                std = std * depth
            completed = Completed(place, _scaled(rate, depth, scale).cpu().numpy(), std.cpu().numpy())
            if not all(np.isfinite(values).all() for values in completed[1:]):
                raise FloatingPointError(
                    f"The completion of spots {rows[place].min()} to {rows[place].max()} is not finite. Check "
                    "these spots for extreme counts and depths."
                )
            self._steady.check()
            yield completed

    def read(
        self, rows: NDArray[np.int64], genes: NDArray[np.int64] | None = None, *, silent: bool = True
    ) -> Completed:
        """Completed values of all of some spots; arguments as of :meth:`batches`."""
        shape = (len(rows), self._view.n_genes if genes is None else len(genes))
        values = np.empty(shape, dtype=np.float32)
        std = np.empty(shape if self._reading.return_std else (0, 0), dtype=np.float32)
        for part in self.batches(rows, genes, silent=silent):
            values[part.place] = part.values
            if self._reading.return_std:
                std[part.place] = part.std
        return Completed(slice(0, len(rows)), values, std)

    def samples(
        self, rows: NDArray[np.int64], genes: NDArray[np.int64] | None, *, silent: bool
    ) -> Iterator[tuple[slice, Batch, NDArray[np.float32]]]:
        """Joint samples of some spots, a minibatch at a time.

        Parameters
        ----------
        rows, genes, silent
            As in :meth:`batches`.

        Returns
        -------
        Places of the spots, the minibatch with the chosen genes, and values in the unit of the reading's scale,
        ``(n_draws, n_spots, n_genes)``.
        """
        module, reading = self._module, self._reading
        drawn = ExpressionSamples(module, self._view.draws.shape[1], reading.seed)
        chosen = None if genes is None else torch.from_numpy(genes)
        for place, batch in self._gathered(rows, silent):
            prediction = self._predict(batch, genes=chosen)
            seen = prediction.batch
            samples = drawn.draw(prediction, batch.to(module.device), rows[place])
            values = [_scaled(sample, seen.depth[:, None], reading.scale).cpu().numpy() for sample in samples]
            yield place, seen, np.stack(values)

    def expectations(
        self, rows: NDArray[np.int64], genes: NDArray[np.int64] | None, *, silent: bool
    ) -> Iterator[tuple[slice, Batch, Posterior, Iterator[torch.Tensor]]]:
        """What the joint samples of some spots are drawn from, a minibatch at a time.

        Parameters
        ----------
        rows, genes, silent
            As in :meth:`batches`.

        Returns
        -------
        Places of the spots, the minibatch with the chosen genes, the posterior of the rates, and samples of their expectations,
        each ``(n_spots, n_genes)``, around which rates of single entries are gamma distributed.
        """
        module = self._module
        drawn = ExpressionSamples(module, self._view.draws.shape[1], self._reading.seed)
        chosen = None if genes is None else torch.from_numpy(genes)
        for place, batch in self._gathered(rows, silent):
            prediction = self._predict(batch, genes=chosen)
            given = posterior(prediction, module)
            yield place, prediction.batch, given, drawn.expectations(given, prediction, batch.to(module.device))

    def hidden(self, rows: NDArray[np.int64], *, silent: bool = True) -> tuple[NDArray, NDArray, NDArray]:
        """Predict the hidden entries of some spots.

        Parameters
        ----------
        rows, silent
            As in :meth:`batches`.

        Returns
        -------
        Expected share of the depth, its standard deviation, and expected log1p of counts per 10,000 given detection; each
        ``(n_rows, n_genes)``, valid at the hidden entries only.
        """
        rate, std, log_value = (np.empty((len(rows), self._view.n_genes), dtype=np.float32) for _ in range(3))
        for place, batch in self._gathered(rows, silent):
            prediction = self._predict(batch, observed=False, detected=True)
            given = posterior(prediction, self._module, known=torch.zeros_like(prediction.batch.observed))
            variance = given.variance(prediction.log_variance)
            rate[place], std[place], log_value[place] = (
                values.cpu().numpy() for values in (prediction.rate, variance.sqrt(), prediction.detected)
            )
        return rate, std, log_value

    @torch.no_grad()
    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Codes of some spots from all that may be seen of them, ``(n_rows, n_latent)``."""
        module = self._module
        codes = np.empty((len(rows), module.denoiser.code_std.numel()), dtype=np.float32)
        for place, gathered in self._gathered(rows, silent=True):
            batch = gathered.to(module.device)
            codes[place] = module.encode(batch, module.condition.visible(batch)).centre.cpu().numpy()
        return codes

    def _predict(self, batch: Batch, **options: object) -> Prediction:
        return predict(self._module, batch, self._noise, self._reading.n_steps, **options)  # type: ignore[arg-type]

    def _gathered(self, rows: NDArray[np.int64], silent: bool) -> Iterator[tuple[slice, Batch]]:
        """Minibatches on the CPU, and the places of their spots among the rows."""
        size = self._reading.batch_size
        starts = range(0, len(rows), size)
        places = [slice(start, min(start + size, len(rows))) for start in starts]
        shown = track(places, description="Completing", style="tqdm", disable=silent)
        with smaller_batches_suggested():
            if self._module.device.type == "cuda":
                gathered = ahead(shown, lambda place: self._view.gather(rows[place], folds=self._folds).pin_memory())
            else:
                gathered = ((place, self._view.gather(rows[place], folds=self._folds)) for place in shown)
            for place, batch in gathered:
                yield place, batch
                self._steady.check()


def _require_room(module: LGDiSTModule, reading: Reading, n_spots: int) -> None:
    """Refuse more samples than fit in memory, which a smaller minibatch hardly changes."""
    if module.device.type == "cpu":
        widest = max(weight.shape[0] for weight in module.denoiser.parameters())
        require_memory(
            4 * reading.n_samples * min(reading.batch_size, n_spots) * widest,
            f"The n_samples={reading.n_samples} codes of every spot of a minibatch",
            f"Pass a smaller n_samples ({N_SAMPLES} are usual).",
        )


def _scaled(rate: torch.Tensor, depth: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Shares of the depth in the unit of the scale."""
    if scale == "log1p":
        return torch.log1p(rate * TARGET_SUM)
    return rate * depth if scale == "counts" else rate
