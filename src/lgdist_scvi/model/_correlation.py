"""Correlation between genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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

    from lgdist_scvi.data._batch import Batch

    from ._options import Scale

    Floats = NDArray[np.float64]

N_PATCHES = 20
"""Connected parts of the tissue, each of which is left out once for the standard error."""
LEAST_SPOTS = 10
UNKNOWN_COVARIANCE, UNKNOWN_VARIANCE = 4e-4, 1e-2
"""Squared errors of the covariances and variances of the samples that these do not know of, in units of the product of the genes'
variances. Chosen on four sections, with seeds that no reported score uses."""
_LEAST_VARIANCE = 0.1  # of that of the samples


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
        :meth:`sample_expression`: of the completed values and of what is open, together. Where the counts determine them well, they
        are moved towards those of the counts, of which the noise is subtracted.

        Parameters
        ----------
        adata, indices, gene_list
            As in :meth:`get_completed_expression`. `indices` chooses the spots of a group.
        return_std
            Also return standard errors: from the samples, and from leaving out each of 20 connected parts of the tissue in turn.
            They are those of a correlation over more tissue of this kind.
        scale
            As in :meth:`sample_expression`; correlations of shares of the depth by default. Those of log values are of the samples
            alone, because noise cannot be subtracted from logs.
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
            16 * (n_samples + 4 * N_PATCHES) * n_genes**2 + self._bytes_of_draws(n_samples, view),
            f"Correlations of {n_genes} genes",
            "Ask for fewer genes with `gene_list`.",
        )
        # In the order of the tissue, so that spots next to each other come in few parts.
        rows = rows[np.argsort(np.argsort(in_strips(view.graph))[rows])]
        part_of = np.arange(len(rows)) * N_PATCHES // len(rows)
        of_samples, of_parts = (np.zeros((n, n_genes + 1, n_genes + 1)) for n in (n_samples, N_PATCHES))
        counted = _Products(*np.zeros((4, N_PATCHES, n_genes, n_genes)))
        noise = _Noise(*np.zeros((4, n_genes, n_genes)))
        for place, seen, samples in self._samples(view, rows, genes, n_samples, reading, silent):
            # With ones in front, products of values hold number and sums as well.
            values = np.insert(samples.astype(np.float64), 0, 1.0, axis=2)
            of_samples += values.transpose(0, 2, 1) @ values
            counts, visible, unit = _counted(seen, scale)
            for total, added in zip(noise, _Noise.of(values[:, :, 1:], visible, unit), strict=True):
                total += added
            for part in np.unique(part_of[place]):
                inside = part_of[place] == part
                some = values[:, inside].reshape(-1, n_genes + 1)
                of_parts[part] += some.T @ some
                products = _Products.of(counts[inside], visible[inside], unit[inside])
                for total, added in zip(counted, products, strict=True):
                    total[part] += added
        of_each = _covariance(of_samples)
        sampled, together = of_each.mean(axis=0), _Products(*(part.sum(axis=0) for part in counted))
        claimed = of_each.var(axis=0, ddof=1) if n_samples > 1 else np.zeros_like(sampled)
        share = _share_of_counts(sampled, claimed, noise.variance(together))
        labels = {"index": adata.var_names[genes], "columns": adata.var_names[genes]}
        correlation = pd.DataFrame(_correlation(_moved(sampled, together, share)), **labels)
        if not return_std:
            return correlation
        there = np.diff(np.searchsorted(part_of, np.arange(N_PATCHES + 1))) > 0
        rest = _covariance(of_parts.sum(axis=0) - of_parts[there])
        rest_counted = _Products(*(part.sum(axis=0) - part[there] for part in counted))
        without = _correlation(_moved(rest, rest_counted, share))
        among_parts = (len(without) - 1) * without.var(axis=0)
        among_samples = _correlation(of_each).var(axis=0, ddof=int(n_samples > 1))
        return correlation, pd.DataFrame(np.sqrt(among_parts + among_samples), **labels)


class _Products(NamedTuple):
    """Sums over spots of products of counted values where both genes are visible, each ``(..., n_genes, n_genes)``."""

    values: Floats
    first: Floats
    """Of the values of the first gene."""
    number: Floats
    noise: Floats
    """Of the variance of counting; on the diagonal only."""

    @classmethod
    def of(cls, values: Floats, visible: Floats, unit: Floats) -> _Products:
        """Sums over spots, given values that are 0 where nothing is visible, and what one count is worth."""
        return cls(values.T @ values, values.T @ visible, visible.T @ visible, np.diag((values * unit).sum(axis=0)))

    def covariance(self) -> Floats:
        """Covariance over spots without the variance of counting."""
        number = np.maximum(self.number, 1)
        first = self.first / number
        return (self.values - self.noise) / number - first * np.swapaxes(first, -1, -2)


class _Noise(NamedTuple):
    """Sums over spots, each ``(n_genes, n_genes)``, of which the noise of covariances of counts is made.

    Products of the variance of counting of the second gene with four things of the first: that of its own, squares, values and 1.
    """

    noise: Floats
    squares: Floats
    values: Floats
    number: Floats

    @classmethod
    def of(cls, samples: Floats, visible: Floats, unit: Floats) -> _Noise:
        """Sums over spots, given samples ``(n_samples, n_spots, n_genes)``."""
        mean = samples.mean(axis=0) * visible
        noise = mean * unit
        return cls(*(of.T @ noise for of in (noise, np.square(samples).mean(axis=0) * visible, mean, visible)))

    def variance(self, counted: _Products) -> Floats:
        """Variance that counting gives to covariances; infinite where nothing is counted."""
        centre = (np.diagonal(counted.first) / np.maximum(np.diagonal(counted.number), 1))[:, None]
        spread = self.squares - 2 * centre * self.values + centre**2 * self.number
        products = self.noise + spread + spread.T
        products[np.diag_indices_from(products)] *= 2  # a gene with itself
        return np.where(counted.number > 1, products / np.maximum(counted.number, 1) ** 2, np.inf)


def _counted(seen: Batch, scale: Scale) -> tuple[Floats, Floats, Floats]:
    """Counts in the unit of the scale, where they tell something, and what one count is worth, ``(n_spots, 1)``."""
    visible = seen.observed.cpu().numpy().astype(np.float64) * (scale != "log1p")
    depth = seen.depth.cpu().numpy().astype(np.float64)[:, None]
    unit = 1 / np.maximum(depth, 1e-6) if scale == "rate" else np.ones_like(depth)
    return seen.counts.cpu().numpy() * visible * unit, visible, unit


def _share_of_counts(sampled: Floats, claimed: Floats, noise: Floats) -> Floats:
    """Weight of the covariances of counts beside those of the samples, whose own noise is in both.

    The weight with which the squared error is least: that of the samples is `claimed` and what they do not know of, that of the
    counts is `noise`, and the former is the part that both have.
    """
    size = np.outer(np.diagonal(sampled), np.diagonal(sampled))
    unknown = UNKNOWN_COVARIANCE * size
    unknown[np.diag_indices_from(unknown)] *= UNKNOWN_VARIANCE / UNKNOWN_COVARIANCE
    return unknown / (unknown + np.maximum(noise - claimed, 1e-3 * noise))


def _moved(sampled: Floats, counted: _Products, share: Floats) -> Floats:
    """Covariances of the samples, moved towards those of the counts."""
    covariance = sampled + share * (counted.covariance() - sampled)
    diagonal = np.arange(covariance.shape[-1])
    least = _LEAST_VARIANCE * sampled[..., diagonal, diagonal]
    covariance[..., diagonal, diagonal] = np.maximum(covariance[..., diagonal, diagonal], least)
    return covariance


def _covariance(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariances from sums of products of values with ones in front."""
    mean = products[:, 0, 1:] / products[:, 0, :1]
    return products[:, 1:, 1:] / products[:, :1, :1] - mean[:, :, None] * mean[:, None]


def _correlation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return np.clip(covariance / (deviation[..., :, None] * deviation[..., None, :]), -1, 1)
