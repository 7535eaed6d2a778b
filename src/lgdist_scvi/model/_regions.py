"""Expression of regions, and whether a gene is there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from lgdist_scvi._checks import check_between, check_whole
from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi._memory import require_memory
from lgdist_scvi.data._areas import groups_of, patches_around
from lgdist_scvi.metrics import count_distribution

from ._options import BATCH_SIZE, Reading
from ._reader import Reader
from ._region_sums import N_DRAWS, AreaMeans, AreaSums, Inflation, area_sums, combined, find_inflation
from ._sampling import SamplingMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy import sparse

    from lgdist_scvi.data._view import SpotView


class Areas(NamedTuple):
    """What is known of areas."""

    sums: AreaSums
    means: AreaMeans


class RegionMixin(SamplingMixin):
    """Means over regions."""

    _inflation: tuple[str, Inflation] | None = None
    """How far claimed errors of means are trusted, and of which field and spots that was found."""

    def get_region_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        *,
        n_spots: int | None = None,
        gene_list: Sequence[str] | None = None,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> AnnData:
        """Mean expression of regions, with standard errors that hold for means.

        The mean of completed values is moved towards the mean of the counts as far as the errors of the two ask for: hardly
        in a few spots, more in a large region or for a rare gene. How large the errors of completed means are is found from
        the data: the field is fitted to half of the molecules and compared with the other half, in patches of several
        sizes.

        Parameters
        ----------
        adata
            Spots, with the genes of the model in its order; by default those of the model.
        groupby
            Column of ``obs`` with the region of each spot; spots without a value are in none.
        n_spots
            In place of `groupby`: the region of each spot is the `n_spots` spots of its section nearest to it, itself included.
        gene_list
            Genes to return, in this order; all by default.
        seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        AnnData of regions and genes. ``X`` holds the mean expression in counts per 10,000 (the total over the total depth, no
        logarithm), ``layers["std"]`` its standard error, ``layers["low"]`` and ``layers["high"]`` the ends of 95% intervals,
        ``layers["raw"]`` the mean of the counts alone and ``layers["completed"]`` that of the completed values, all in this unit;
        raw is NaN where nothing of a gene is visible. ``obs`` holds the number of spots and the depth in counts.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        KeyError, TypeError, ValueError
            If an argument or `adata` does not fit the model, or the model has no latent field.
        MemoryError
            If the result would take more than half of the available memory.

        References
        ----------
        Halves of the molecules: :cite:p:`neufeld2024thinning`. "Regions" of :doc:`/method`.

        Examples
        --------
        >>> regions = model.get_region_expression(n_spots=7, gene_list=["gene_1", "gene_2"])
        >>> regions.shape == (adata.n_obs, 2)
        True
        """
        adata, view, names, members, genes = self._to_average(adata, groupby, n_spots, gene_list)
        areas = self._areas(adata, view, members, genes, seed=seed, batch_size=batch_size, silent=silent)
        low, high = intervals(areas.means)
        seen = areas.sums.exposure
        layers = {
            "std": np.sqrt(areas.means.variance),
            "low": low,
            "high": high,
            "raw": np.divide(areas.sums.counts, seen, out=np.full(seen.shape, np.nan), where=seen > 0),
            "completed": areas.sums.mean,
        }
        obs = pd.DataFrame({"n_spots": members.getnnz(axis=1), "depth": areas.sums.depth[:, 0]}, index=names)
        return AnnData(
            (areas.means.mean * TARGET_SUM).astype(np.float32),
            obs=obs,
            var=pd.DataFrame(index=adata.var_names[genes]),
            layers={name: (values * TARGET_SUM).astype(np.float32) for name, values in layers.items()},
        )

    def detect_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        *,
        n_spots: int | None = None,
        gene_list: Sequence[str] | None = None,
        error: float = 0.05,
        return_probability: bool = False,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """Whether a gene is expressed in a region: present, absent, or undecided.

        A gene is called present where a second measurement of the region, as deep as this one, would find it, and absent where
        that would find none, each with a probability of at least ``1 - error``. So more spots or more depth leave less undecided.
        Zeros alone do not tell: ten spots without a count are no evidence against a gene of one count in twenty spots.

        Parameters
        ----------
        adata, groupby, n_spots, gene_list
            As in :meth:`get_region_expression`.
        error
            Largest probability that a call is wrong, between 0 and 1; at most 0.5.
        return_probability
            Also return the probability that a second measurement finds the gene.
        seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Table ``(n_regions, n_genes)`` of "present", "absent" and "undecided"; no unit. With `return_probability` a pair: the second
        holds probabilities, 0 to 1.

        Raises
        ------
        RuntimeError, KeyError, TypeError, ValueError, MemoryError
            As :meth:`get_region_expression`; also if `error` is not between 0 and 0.5.

        References
        ----------
        "Regions" of :doc:`/method`.

        Examples
        --------
        >>> calls = model.detect_expression(n_spots=19, gene_list=["gene_1"])
        >>> set(calls["gene_1"]) <= {"present", "absent", "undecided"}
        True
        """
        check_between(0, 0.5, error=error)
        adata, view, names, members, genes = self._to_average(adata, groupby, n_spots, gene_list)
        areas = self._areas(adata, view, members, genes, seed=seed, batch_size=batch_size, silent=silent)
        found = 1 - unseen(areas.means, areas.sums.depth)
        calls = np.select([found >= 1 - error, found <= error], ["present", "absent"], "undecided")
        labels = {"index": names, "columns": adata.var_names[genes]}
        kinds = pd.CategoricalDtype(["absent", "undecided", "present"])
        table = pd.DataFrame(calls, **labels).astype(kinds)
        return (table, pd.DataFrame(found, **labels)) if return_probability else table

    def _to_average(
        self, adata: AnnData | None, groupby: str | None, n_spots: int | None, gene_list: Sequence[str] | None
    ) -> tuple[AnnData, SpotView, pd.Index, sparse.csr_matrix, NDArray[np.int64]]:
        """The AnnData, what may be seen of it, names of the regions, their spots, and the numbers of the genes."""
        if (groupby is None) == (n_spots is None):
            raise ValueError(
                "Name the regions with groupby=, or ask for patches around each spot with n_spots=; one of the two."
            )
        adata, view, _, genes = self._to_sample(adata, None, gene_list, N_DRAWS)
        if groupby is not None:
            names, members = groups_of(adata, groupby)
        else:
            assert n_spots is not None
            check_whole(1, n_spots=n_spots)
            names, members = adata.obs_names, patches_around(*self._placed(adata), n_spots)
        require_memory(
            8 * 8 * len(names) * len(genes),
            f"Means of {len(genes)} genes in {len(names)} regions",
            "Ask for fewer genes with gene_list.",
        )
        return adata, view, names, members, genes

    def _areas(
        self,
        adata: AnnData,
        view: SpotView,
        members: sparse.csr_matrix,
        genes: NDArray[np.int64],
        *,
        seed: int,
        batch_size: int,
        silent: bool,
    ) -> Areas:
        """Means over areas, ``(n_areas, n_genes)``."""
        reading = Reading(n_samples=0, scale="rate", seed=seed, batch_size=batch_size)
        inflation = self._inflation_of(adata, view, seed, silent)
        reader = Reader(self.module, view, reading, N_DRAWS)
        sums = area_sums(reader, view, members, genes, silent=silent)
        return Areas(sums, combined(sums, inflation.of(genes, members.getnnz(axis=1))))

    def _inflation_of(self, adata: AnnData, view: SpotView, seed: int, silent: bool) -> Inflation:
        """How far claimed errors of means are trusted; found once for a field and spots."""
        assert self.module.field is not None
        field = hashlib.sha256(self.module.field.loadings.cpu().numpy().tobytes()).hexdigest()
        of = f"{field} {view.digest()} {seed}"
        if self._inflation is None or self._inflation[0] != of:
            found = find_inflation(self.module, view, *self._placed(adata), seed=seed, silent=silent)
            self._inflation = (of, found)
        return self._inflation[1]


def intervals(means: AreaMeans, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of intervals of gamma distributions with these means and variances."""
    shape = means.mean**2 / means.variance
    low, high = (stats.gamma.ppf(q, shape, scale=means.mean / shape) for q in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def unseen(means: AreaMeans, depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a measurement of this depth finds no molecule."""
    return count_distribution(means.mean * depth, np.sqrt(means.variance) * depth).pmf(0)
