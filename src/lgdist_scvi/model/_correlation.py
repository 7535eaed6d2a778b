"""Correlation between genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lgdist_scvi._memory import require_memory
from lgdist_scvi.data._tissue import in_strips

from ._options import BATCH_SIZE, Reading
from ._sampling import N_JOINT_SAMPLES, SamplingMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from ._options import Scale

N_PATCHES = 20
"""Connected parts of the tissue, each of which is left out once for the standard error."""
LEAST_SPOTS = 10


class CorrelationMixin(SamplingMixin):
    """Correlation of the expression of genes over spots."""

    def get_gene_correlation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        return_std: bool = False,
        scale: Scale = "rate",
        n_samples: int = N_JOINT_SAMPLES,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """Correlation of the expression of genes over spots, of the genes themselves and not of noisy or smoothed values.

        Counting noise makes correlations of measured values too small, and correlations of completed values are too large, as
        what the model leaves open is missing in their variance. Here variances and covariances are those of the joint samples of
        :meth:`sample_expression`: of the completed values and of what is open, together.

        Parameters
        ----------
        adata, indices, gene_list
            As in :meth:`get_completed_expression`. `indices` chooses the spots of a group.
        return_std
            Also return standard errors: from the samples, and from leaving out each of 20 connected parts of the tissue in turn.
            They are those of a correlation over more tissue of this kind.
        scale
            As in :meth:`sample_expression`; correlations of shares of the depth by default.
        n_samples
            Number of joint samples.
        seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Table ``(n_genes, n_genes)`` of Pearson correlations, no unit. With `return_std` a pair: the second holds the standard errors.

        Raises
        ------
        RuntimeError, KeyError, TypeError, ValueError
            As :meth:`sample_expression`; also for fewer than 10 spots.
        MemoryError
            If the tables would take more than half of the available memory.

        References
        ----------
        Standard errors of dependent observations: :cite:t:`kunsch1989jackknife`. "Joint samples" of :doc:`/method`.

        Examples
        --------
        >>> correlation, std = model.get_gene_correlation(gene_list=["gene_1", "gene_2"], return_std=True)
        >>> bool(abs(correlation.loc["gene_1", "gene_2"]) <= 1)
        True
        """
        reading = Reading(n_samples=0, scale=scale, seed=seed, batch_size=batch_size)
        adata, view, rows, genes = self._to_sample(adata, indices, gene_list, n_samples)
        if len(rows) < LEAST_SPOTS:
            raise ValueError(f"A correlation over {len(rows)} spots says nothing; choose at least {LEAST_SPOTS}.")
        n_genes = len(genes)
        require_memory(
            16 * (n_samples + 2 * N_PATCHES) * n_genes**2 + self._bytes_of_draws(n_samples, view),
            f"Correlations of {n_genes} genes",
            "Ask for fewer genes with `gene_list`.",
        )
        # In the order of the tissue, so that spots next to each other come in few parts.
        rows = rows[np.argsort(np.argsort(in_strips(view.graph))[rows])]
        part_of = np.arange(len(rows)) * N_PATCHES // len(rows)
        of_samples, of_parts = (np.zeros((n, n_genes + 1, n_genes + 1)) for n in (n_samples, N_PATCHES))
        for place, _, samples in self._samples(view, rows, genes, n_samples, reading, silent):
            # With ones in front, products of values hold number and sums as well.
            values = np.insert(samples.astype(np.float64), 0, 1.0, axis=2)
            of_samples += values.transpose(0, 2, 1) @ values
            for part in np.unique(part_of[place]):
                some = values[:, part_of[place] == part].reshape(-1, n_genes + 1)
                of_parts[part] += some.T @ some
        labels = {"index": adata.var_names[genes], "columns": adata.var_names[genes]}
        correlation = pd.DataFrame(_correlation(_covariance(of_samples).mean(axis=0)), **labels)
        if not return_std:
            return correlation
        of_parts = of_parts[np.diff(np.searchsorted(part_of, np.arange(N_PATCHES + 1))) > 0]
        without = _correlation(_covariance(of_parts.sum(axis=0) - of_parts))
        among_parts = (len(of_parts) - 1) * without.var(axis=0)
        among_samples = _correlation(_covariance(of_samples)).var(axis=0, ddof=int(n_samples > 1))
        return correlation, pd.DataFrame(np.sqrt(among_parts + among_samples), **labels)


def _covariance(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariances from sums of products of values with ones in front."""
    mean = products[:, 0, 1:] / products[:, 0, :1]
    return products[:, 1:, 1:] / products[:, :1, :1] - mean[:, :, None] * mean[:, None]


def _correlation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return np.clip(covariance / (deviation[..., :, None] * deviation[..., None, :]), -1, 1)
