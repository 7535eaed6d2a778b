"""Read-outs: completed expression and quantiles of counts."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lgdist_scvi._checks import check_positive
from lgdist_scvi._memory import require_memory
from lgdist_scvi.data._counts import LARGEST
from lgdist_scvi.metrics import count_distribution

from ._base import LGDiSTBase
from ._options import BATCH_SIZE, N_STEPS, gene_numbers, row_numbers
from ._reader import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from ._options import Scale


class CompletionMixin(LGDiSTBase):
    """Completed expression and quantiles of counts."""

    def get_completed_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        n_samples: int | None = None,
        n_steps: int = N_STEPS,
        keep_observed: bool = False,
        return_std: bool = False,
        scale: Scale = "log1p",
        read_out: str = "expected",
        use_image: bool = True,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        return_numpy: bool = False,
        silent: bool = False,
    ) -> pd.DataFrame | NDArray[np.float32] | tuple:
        """Completed expression of every spot and gene: what repetitions of the measurement would find on average.

        The network predicts an observed entry without its own count; the latent field solves the codes of all spots from all
        visible counts. The prediction ``mu`` is then combined with the count ``y`` of an observed entry, zero or not, to the
        posterior mean ``mu (y + r) / (mu + r)``. An unobserved entry is predicted.

        Parameters
        ----------
        adata
            Spots to complete, with the genes of the model in its order; by default those of the model.
        indices
            Rows of `adata`; all by default. Their neighbours are taken from the whole `adata`.
        gene_list
            Genes to return, in this order; all by default.
        n_samples
            Codes drawn from the diffusion and averaged per spot; 0 decodes the autoencoder's own code. By default 4 where
            :meth:`train` trains the diffusion without being asked for its epochs, else 0.
        n_steps
            Sampler steps per code.
        keep_observed
            Return detected entries (counts above 0) as measured, as in the convention of the paper. Measured values keep their
            chance excess while zeros are raised to their expectation, so that sums and means of regions are too high, up to
            twofold for rare genes, and differences between regions too small.
        return_std
            Also return the standard deviation.
        scale
            "log1p": log1p of counts per 10,000. "rate": share of the spot's depth. "counts": counts at the spot's
            depth.
        read_out
            "expected": expected expression; zeros count as evidence of a low rate. "detected": expectation of the log
            value given that the entry is detected, as scored by the published metric; not an estimate of expression.
        use_image
            Use the images, if the model was trained with images.
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
        Table ``(n_spots, n_genes)`` in the unit of `scale`, float32, rows in the order of ``obs_names`` (or `indices`),
        columns in that of ``var_names`` (or `gene_list`). With `return_std` a pair: the second is the standard
        deviation of the true rate around the returned value (from the posterior of the latent field and the overdispersion,
        without the noise of counting), to first order on the log scale, and 0 for entries returned as measured. It is that of
        :meth:`sample_expression`.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        KeyError, TypeError, ValueError
            If an argument or `adata` does not fit the model.
        FloatingPointError
            If a completed value is not finite.
        MemoryError
            If the result would take more than half of the available memory.

        References
        ----------
        :cite:t:`cardenas2025lgdist`; sampler: :cite:p:`lu2022dpmsolverpp` or :cite:p:`song2021ddim`; count model:
        :cite:p:`townes2019glmpca`. "Completion" and "The read-outs" of :doc:`/method`.

        Examples
        --------
        >>> completed = model.get_completed_expression()
        >>> completed.shape == adata.shape
        True
        >>> mean, std = model.get_completed_expression(gene_list=["gene_1", "gene_2"], return_std=True)
        """
        reading = self._reading(
            n_samples,
            n_steps=n_steps,
            keep_observed=keep_observed,
            return_std=return_std,
            scale=scale,
            read_out=read_out,
            use_image=use_image,
            seed=seed,
            batch_size=batch_size,
        )
        adata, view = self._trained_view(adata, diffusion=reading.n_samples > 0, use_image=use_image)
        rows, genes = row_numbers(indices, adata), gene_numbers(gene_list, adata)
        require_memory(
            4 * len(rows) * len(genes) * (1 + return_std),
            f"The completed expression of {len(rows)} spots and {len(genes)} genes",
            "Ask for part of it with `indices` or `gene_list`, or write all of it to disk with write_completed().",
        )
        completed = Reader(self.module, view, reading).read(rows, None if gene_list is None else genes, silent=silent)
        labels = {"index": adata.obs_names[rows], "columns": adata.var_names[genes]}
        parts = [part if return_numpy else pd.DataFrame(part, **labels) for part in completed[1 : 2 + return_std]]
        return tuple(parts) if return_std else parts[0]

    def get_count_quantiles(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        quantiles: float | Sequence[float] = (0.025, 0.5, 0.975),
        depth: float | None = None,
        n_samples: int | None = None,
        n_steps: int = N_STEPS,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> dict[float, pd.DataFrame]:
        """Quantiles of the counts in a repetition of the measurement.

        They combine the uncertainty of the rate and the counting noise (see
        :func:`lgdist_scvi.metrics.count_distribution`), given the measured counts.

        Parameters
        ----------
        adata, indices, gene_list
            As in :meth:`get_completed_expression`.
        quantiles
            Probability between 0 and 1, or several; by default the median and the ends of 95% intervals.
        depth
            Depth of the repetition in counts per spot; by default that of the spot itself.
        n_samples, n_steps, seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        For each quantile a table ``(n_spots, n_genes)`` of counts.

        Raises
        ------
        ValueError
            If a quantile is not between 0 and 1, or the depth is not above 0, or too large for a number of counts.
        RuntimeError, KeyError, TypeError, ValueError, FloatingPointError
            As :meth:`get_completed_expression`.
        MemoryError
            If the tables would take more than half of the available memory.

        References
        ----------
        :cite:t:`greenwood1920inquiry`; "The read-outs" of :doc:`/method`.

        Examples
        --------
        >>> quantiles = model.get_count_quantiles(gene_list=["gene_1"], quantiles=(0.1, 0.9))
        >>> bool((quantiles[0.1] <= quantiles[0.9]).all(axis=None))
        True
        """
        quantiles = quantiles if isinstance(quantiles, Iterable) else [quantiles]
        if wrong := [q for q in quantiles if not isinstance(q, Real) or not 0 < q < 1]:
            raise ValueError(f"Quantiles must be numbers between 0 and 1, got {wrong}.")
        if depth is not None:
            check_positive(depth=depth)
            if depth > LARGEST:
                raise ValueError(f"depth={depth!r} is too large for a number of counts; pass at most {LARGEST}.")
        options: dict[str, Any] = {"n_samples": n_samples, "n_steps": n_steps, "seed": seed, "batch_size": batch_size}
        options |= {"scale": "counts" if depth is None else "rate", "return_std": True}
        mean, std = self.get_completed_expression(adata, indices, gene_list, silent=silent, **options)
        require_memory(
            8 * mean.size * len(quantiles),
            f"{len(quantiles)} quantiles of {mean.size} counts",
            "Ask for a part with `indices` or `gene_list`.",
        )
        distribution = count_distribution(mean * (depth or 1.0), std * (depth or 1.0))
        labels = {"index": mean.index, "columns": mean.columns}
        return {q: pd.DataFrame(distribution.ppf(q), **labels) for q in quantiles}
