"""Read-outs: completed expression, latent representation."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from lgdist_scvi._compat import track
from lgdist_scvi._constants import Keys
from lgdist_scvi.data._validation import validate_genes, validate_setup
from lgdist_scvi.metrics import count_distribution
from lgdist_scvi.module._autoencoder import TARGET_SUM

from ._readout import draw_noise, posterior, predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from scvi.data import AnnDataManager

    from lgdist_scvi.data._view import Batch, SpotView
    from lgdist_scvi.module._lgdist import LGDiSTModule

Scale = Literal["log1p", "rate", "counts"]
ReadOut = Literal["expected", "detected"]

N_SAMPLES = 4
N_STEPS = 4
BATCH_SIZE = 256


class CompletionMixin:
    """Completed expression and latent representation."""

    module: LGDiSTModule
    adata: AnnData
    adata_manager: AnnDataManager
    _gene_names: Callable[[], NDArray]
    _validate_anndata: Callable[..., AnnData]
    _view: Callable[..., SpotView]
    zeros_missing_: bool
    history_: dict
    init_params_: dict

    def get_completed_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        n_samples: int = N_SAMPLES,
        n_steps: int = N_STEPS,
        keep_observed: bool = True,
        return_std: bool = False,
        scale: Scale = "log1p",
        read_out: ReadOut = "expected",
        use_image: bool = True,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        return_numpy: bool = False,
        silent: bool = False,
    ) -> pd.DataFrame | NDArray[np.float32] | tuple:
        """Expression of every spot and gene, with what was not detected completed.

        Unobserved entries and observed zeros are completed. An entry's own count never enters its prediction: entries
        that were observed are predicted without it, and only then combined with it.

        Parameters
        ----------
        adata
            Spots to complete, with the genes of the model in its order; by default those of the model.
        indices
            Rows of `adata`; all by default. Their neighbours are taken from the whole `adata`.
        gene_list
            Genes to return, in this order; all by default.
        n_samples
            Codes that are drawn from the diffusion and averaged; 0 decodes the autoencoder's own code.
        n_steps
            Steps of the sampler for each.
        keep_observed
            Return detected entries (counts above 0) as they were measured. If False they are denoised: their count
            ``y`` is combined with the expected count ``mu`` to the posterior mean ``mu (y + r) / (mu + r)``.
        return_std
            Also return the standard deviation.
        scale
            "log1p": log1p of counts per 10,000. "rate": share of the spot's depth. "counts": counts at the spot's
            depth.
        read_out
            "expected": expected expression; zeros count as evidence of a low rate. "detected": expectation of the log
            value given that the entry is detected, as scored by the published metric; not an estimate of expression.
        use_image
            Use the images, where the model was trained with some.
        seed
            Seed of the sampling.
        batch_size
            Spots per minibatch.
        return_numpy
            Return arrays without names.
        silent
            Show no progress bar.

        Returns
        -------
        Table of shape ``(n_spots, n_genes)``, float32, rows in the order of ``obs_names`` (or `indices`), columns in
        that of ``var_names`` (or `gene_list`). With `return_std` a pair: the second is the standard deviation of the
        true rate around the returned value (from the samples and the overdispersion, without the noise of counting),
        to first order on the log scale, and 0 for entries returned as measured.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If an argument or `adata` does not fit the model.
        """
        check_choice("scale", scale, ("log1p", "rate", "counts"))
        check_choice("read_out", read_out, ("expected", "detected"))
        for name, number, least in (
            ("n_samples", n_samples, 0),
            ("n_steps", n_steps, 1),
            ("batch_size", batch_size, 1),
        ):
            if number < least:
                raise ValueError(f"{name}={number} must be at least {least}.")
        if read_out == "detected" and return_std:
            raise ValueError("return_std goes with read_out='expected'.")
        adata, view = self._trained_view(adata, diffusion=n_samples > 0, use_image=use_image)
        rows = _row_numbers(indices, adata)
        genes = gene_numbers(gene_list, adata)
        completed = self._complete(
            view,
            rows,
            genes=genes,
            n_samples=n_samples,
            n_steps=n_steps,
            keep_observed=keep_observed,
            return_std=return_std,
            scale=scale,
            read_out=read_out,
            seed=seed,
            batch_size=batch_size,
            silent=silent,
        )
        if return_numpy:
            return completed
        labels = {"index": adata.obs_names[rows], "columns": adata.var_names[genes]}
        if return_std:
            return tuple(pd.DataFrame(values, **labels) for values in completed)
        return pd.DataFrame(completed, **labels)

    def get_count_quantiles(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        quantiles: Sequence[float] = (0.025, 0.5, 0.975),
        depth: float | None = None,
        n_samples: int = N_SAMPLES,
        n_steps: int = N_STEPS,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> dict[float, pd.DataFrame]:
        """Quantiles of the counts that a repetition of the measurement would give.

        The uncertainty of the rate and the noise of counting together, see
        :func:`lgdist_scvi.metrics.count_distribution`; the counts that were measured are known.

        Parameters
        ----------
        adata, indices, gene_list, n_samples, n_steps, seed, batch_size, silent
            As in :meth:`get_completed_expression`.
        quantiles
            Probabilities between 0 and 1; by default the median and the ends of 95% intervals.
        depth
            Depth of the repetition in counts per spot; by default that of the spot itself.

        Returns
        -------
        Table of counts of shape ``(n_spots, n_genes)`` for each quantile.

        Raises
        ------
        ValueError
            If a quantile is not between 0 and 1, or the depth is not positive.
        """
        if wrong := [q for q in quantiles if not 0 < q < 1]:
            raise ValueError(f"Quantiles must lie between 0 and 1, got {wrong}.")
        if depth is not None and not depth > 0:
            raise ValueError(f"`depth` must be positive, got {depth}.")
        options: dict[str, Any] = {"n_samples": n_samples, "n_steps": n_steps, "seed": seed, "batch_size": batch_size}
        options |= {"scale": "counts" if depth is None else "rate", "keep_observed": False, "return_std": True}
        mean, std = self.get_completed_expression(adata, indices, gene_list, silent=silent, **options)
        distribution = count_distribution(mean * (depth or 1.0), std * (depth or 1.0))
        labels = {"index": mean.index, "columns": mean.columns}
        return {q: pd.DataFrame(distribution.ppf(q), **labels) for q in quantiles}

    def add_completed_layer(
        self, adata: AnnData | None = None, *, key_added: str = Keys.LAYER, return_std: bool = False, **options: Any
    ) -> None:
        """Write the completed expression to `adata`, with what was imputed and how.

        Writes ``layers[key_added]`` (float32), ``layers[key_added + "_imputed"]`` (True where the value is imputed),
        with `return_std` ``layers[key_added + "_std"]``, and ``uns[key_added]``. The counts are left alone.

        Parameters
        ----------
        adata
            Spots to complete; by default those of the model.
        key_added
            Name of the layer.
        return_std
            Also write the standard deviation.
        **options
            Options of :meth:`get_completed_expression`, but for `indices`, `gene_list` and `return_numpy`.
        """
        completed = self.get_completed_expression(adata, return_std=return_std, return_numpy=True, **options)
        adata, view = self._trained_view(adata, diffusion=False)
        values, std = completed if return_std else (completed, None)
        adata.layers[key_added] = values
        if std is not None:
            adata.layers[f"{key_added}_std"] = std
        measured = view.counts.astype(bool).toarray()
        adata.layers[f"{key_added}_imputed"] = ~measured
        defaults = {"n_samples": N_SAMPLES, "n_steps": N_STEPS, "keep_observed": True, "scale": "log1p"}
        defaults |= {"read_out": "expected", "use_image": True, "seed": 0}
        adata.uns[key_added] = {
            "model": type(self).__name__,
            "package": "lgdist-scvi",
            "version": version("lgdist-scvi"),
            **defaults,
            **{name: value for name, value in options.items() if name in defaults},
        }

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> NDArray[np.float32]:
        """Code of every spot, from all that was observed of it and its neighbourhood.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Array of shape ``(n_spots, n_latent)``, for example for ``adata.obsm["X_lgdist"]``.
        """
        adata, view = self._trained_view(adata, diffusion=False)
        rows = _row_numbers(indices, adata)
        codes = []
        with torch.no_grad():
            for _, batch in self._batches(view, rows, batch_size, silent=True):
                codes.append(self.module.encode(batch, self.module.visible(batch)).centre.cpu().numpy())
        return np.concatenate(codes)

    def _complete(
        self,
        view: SpotView,
        rows: NDArray[np.int64],
        *,
        genes: NDArray[np.int64] | slice = slice(None),
        n_samples: int = N_SAMPLES,
        n_steps: int = N_STEPS,
        keep_observed: bool = True,
        return_std: bool = False,
        scale: Scale = "log1p",
        read_out: ReadOut = "expected",
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = True,
    ) -> Any:
        """Completed rows of a view, in preallocated arrays; parameters as in :meth:`get_completed_expression`."""
        module, noise = self.module, self._noise(n_samples, seed)
        n_genes = len(np.arange(view.n_genes)[genes])
        completed = np.empty((len(rows), n_genes), dtype=np.float32)
        spread = np.empty_like(completed) if return_std else None
        for place, batch in self._batches(view, rows, batch_size, silent):
            prediction = predict(module, batch, noise, n_steps, detected=read_out == "detected")
            depth = batch.depth[:, None]
            measured = batch.observed & (batch.counts > 0)
            rate, variance = posterior(prediction, batch, batch.observed, module)
            if read_out == "detected":
                rate = prediction.detected.expm1() / TARGET_SUM
            if keep_observed:
                rate = torch.where(measured, batch.counts / depth, rate)
                variance = torch.where(measured, 0, variance)
            std = variance.sqrt()
            if scale == "log1p":
                std = std * TARGET_SUM / (1 + rate * TARGET_SUM)
                rate = torch.log1p(rate * TARGET_SUM)
            elif scale == "counts":
                rate, std = rate * depth, std * depth
            completed[place] = rate.cpu().numpy()[:, genes]
            if spread is not None:
                spread[place] = std.cpu().numpy()[:, genes]
        return completed if spread is None else (completed, spread)

    def _noise(self, n_samples: int, seed: int) -> torch.Tensor | None:
        if not n_samples:
            return None
        return draw_noise(n_samples, len(self.module.denoiser.code_std), seed).to(self.module.device)

    def _batches(
        self, view: SpotView, rows: NDArray[np.int64], batch_size: int, silent: bool
    ) -> Iterator[tuple[slice, Batch]]:
        starts = range(0, len(rows), batch_size)
        for start in track(starts, description="Completing", style="tqdm", disable=silent):
            place = slice(start, min(start + batch_size, len(rows)))
            yield place, view.gather(rows[place]).to(self.module.device)

    def _trained_view(
        self, adata: AnnData | None, *, diffusion: bool, use_image: bool = True
    ) -> tuple[AnnData, SpotView]:
        """Check model and data, and read what may be seen of the data."""
        self._check_trained(diffusion=diffusion)
        if adata is not None and adata is not self.adata:
            validate_genes(self._gene_names(), adata)
            validate_setup(adata, **_validated(self.adata_manager.registry["setup_args"]), query=True)
        adata = self._validate_anndata(adata, copy_if_view=False)
        view = self._view(adata, self.module.share.cpu().numpy())
        view.image_mask &= use_image
        return adata, view

    def _check_trained(self, *, diffusion: bool) -> None:
        needed = {"autoencoder": "train"} | ({"diffusion": "train_diffusion"} if diffusion else {})
        for phase, method in needed.items():
            if phase not in self.history_:
                hint = " (or pass n_samples=0 for the autoencoder's own prediction)" if phase == "diffusion" else ""
                raise RuntimeError(f"The {phase} has not been trained: call model.{method}() first{hint}.")


def _validated(setup: dict) -> dict:
    return {name: value for name, value in setup.items() if name != "neighbors_key"}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")


def _row_numbers(indices: Sequence[int] | None, adata: AnnData) -> NDArray[np.int64]:
    if indices is None:
        return np.arange(adata.n_obs)
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if rows.shape != (adata.n_obs,):
            raise ValueError(f"The mask `indices` has shape {rows.shape}; it must have one entry per spot.")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError("`indices` must be a list of row numbers or a boolean mask of the spots.")
    if len(rows) and (rows.min() < 0 or rows.max() >= adata.n_obs):
        raise ValueError(f"`indices` must lie in 0..{adata.n_obs - 1}, got {rows.min()}..{rows.max()}.")
    return rows.astype(np.int64)


def gene_numbers(gene_list: Sequence[str] | None, adata: AnnData) -> NDArray[np.int64]:
    if gene_list is None:
        return np.arange(adata.n_vars)
    if isinstance(gene_list, str):
        raise ValueError(f"`gene_list` must be a list of genes; did you mean [{gene_list!r}]?")
    numbers = adata.var_names.get_indexer(pd.Index(gene_list))
    unknown = [gene for gene, number in zip(gene_list, numbers, strict=True) if number < 0]
    if unknown:
        raise ValueError(f"{len(unknown)} genes of `gene_list` are not in adata.var_names: {unknown[:5]}.")
    return numbers
