"""Differences of expression between groups of spots."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, special

from lgdist_scvi._compat import track
from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.data._areas import groups_of
from lgdist_scvi.module._field_codes import solve_field
from lgdist_scvi.module._guide import Guide

from ._options import BATCH_SIZE, row_numbers
from ._region_sums import N_DRAWS
from ._regions import RegionMixin
from ._score_test import guided_fdr, moments, p_values, score_test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._regions import Areas

LEAST_SPOTS = 3
_NORMAL_95 = 1.96


class Comparison(NamedTuple):
    """Two groups to compare."""

    names: tuple[str, str]
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Their spots."""


class DifferentialMixin(RegionMixin):
    """Differential expression."""

    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: Sequence[int] | None = None,
        idx2: Sequence[int] | None = None,
        *,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Genes whose expression differs between groups of spots.

        The p-values are those of a score test on the counts, with the depth as offset, within sections. Nothing of the completion
        enters them, so they are valid for any groups, small or contiguous ones included. What the surroundings and the other genes
        say takes part in the false discovery rate alone: from it a difference is expected for each gene, without a look at the
        counts of the gene in these spots, and less evidence is asked of genes for which such expectations prove right. In groups of 10
        to 30 spots this finds at least about twice as many genes as the counts alone.

        Parameters
        ----------
        adata
            Spots, with the genes of the model in its order; by default those of the model.
        groupby
            Column of ``obs`` with the group of each spot; spots without a value are left out.
        group1
            Group or groups, each compared with `group2`; all by default.
        group2
            Group to compare with; by default all other spots with a value.
        idx1, idx2
            In place of groups: row numbers, or a boolean mask, of the spots of the two; the second are by default all others.
        seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Table ``(n_comparisons * n_genes, 13)`` with a row for each comparison and gene, named by the gene, sorted by ``pvals_adj`` in
        each comparison, and the columns ``comparison``, ``group1``, ``group2``; ``scores`` (standard normal where nothing differs); ``logfoldchanges`` (base 2, of the
        means of :meth:`get_region_expression`) with the ends ``lfc_low`` and ``lfc_high`` of 95% intervals, ``lfc_raw`` of the counts
        alone and ``lfc_expected`` without them; ``mean1`` and ``mean2`` (counts per 10,000); ``pvals``, and ``pvals_adj``, the
        guided false discovery rate.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        KeyError, TypeError, ValueError
            If an argument or `adata` does not fit the model, the model has no latent field, or a group has fewer than 3 spots.
        MemoryError
            If the result would take more than half of the available memory.

        Notes
        -----
        If the groups are clusters of completed or measured expression of the same spots, they were chosen by the noise of the genes
        that are then tested. Genes that had a part in this are found too often, whatever the test.

        References
        ----------
        Grouped false discovery rate: :cite:t:`hu2010grouped`; covariates: :cite:t:`ignatiadis2016ihw`. "Regions" of :doc:`/method`.

        Examples
        --------
        >>> table = model.differential_expression(idx1=range(30), idx2=range(60, 90), silent=True)
        >>> list(table.columns[:4])
        ['comparison', 'group1', 'group2', 'scores']
        """
        adata, view, _, genes = self._to_sample(adata, None, None, N_DRAWS)
        comparisons = _comparisons(adata, groupby, group1, group2, idx1, idx2)
        members = _members([rows for one in comparisons for rows in one.rows], adata.n_obs)
        areas = self._areas(adata, view, members, genes, seed=seed, batch_size=batch_size, silent=silent)
        _, section = self._placed(adata)
        solve_field(self.module, view, folded=view.n_spots)
        tables = []
        shown = track(comparisons, description="Comparing", style="tqdm", disable=silent)
        for number, one in enumerate(shown):
            table = self._compared(view, section, one, areas, number)
            tables.append(table.set_index(adata.var_names).sort_values(["pvals_adj", "pvals"], kind="stable"))
        return pd.concat(tables)

    def _compared(
        self, view: SpotView, section: NDArray[np.intp], one: Comparison, areas: Areas, number: int
    ) -> pd.DataFrame:
        """Table of one comparison, a row for each gene in the order of the model."""
        first, second = one.rows
        shared = np.intersect1d(section[first], section[second])
        if len(shared):
            parts = [[rows[section[rows] == part] for part in shared] for rows in (first, second)]
        else:
            warnings.warn(
                f"{one.names[0]} and {one.names[1]} have no section in common: a difference between the sections cannot be told from "
                "one between the groups.",
                UserWarning,
                stacklevel=3,
            )
            parts = [[first], [second]]
        size = self.module.dispersion.cpu().numpy().astype(np.float64)
        of_first, of_second = (moments(view, _members(rows, view.n_spots)) for rows in parts)
        tested = score_test(of_first, of_second, size)
        outside = np.setdiff1d(np.arange(view.n_spots), np.union1d(first, second))
        # Whatever is within one of these three says nothing of a difference between the two groups.
        guide = Guide(self.module, view, max(outside, first, second, key=len))
        rates = [np.maximum(guide.rates(rows), np.finfo(np.float64).tiny) for rows in (first, second)]
        expected = np.log(rates[0]) - np.log(rates[1])
        pair = slice(2 * number, 2 * number + 2)
        mean, variance = areas.means.mean[pair], areas.means.variance[pair]
        counts = (areas.sums.counts[pair] + 0.5) / (areas.sums.exposure[pair] + 0.5 / np.maximum(mean, 1e-12))
        change = np.log2(mean[0] / mean[1])
        # Variance of the logs of gamma variables.
        std = np.sqrt(special.polygamma(1, mean**2 / variance).sum(axis=0)) / np.log(2)
        return pd.DataFrame(
            {
                "comparison": f"{one.names[0]} vs {one.names[1]}",
                "group1": one.names[0],
                "group2": one.names[1],
                "scores": tested.score,
                "logfoldchanges": change,
                "lfc_low": change - _NORMAL_95 * std,
                "lfc_high": change + _NORMAL_95 * std,
                "lfc_raw": np.log2(counts[0] / counts[1]),
                "lfc_expected": expected / np.log(2),
                "mean1": mean[0] * TARGET_SUM,
                "mean2": mean[1] * TARGET_SUM,
                "pvals": p_values(tested.score),
                "pvals_adj": guided_fdr(tested, expected),
            }
        )


def _members(groups: Sequence[NDArray[np.int64]], n_spots: int) -> sparse.csr_matrix:
    """1 for the spots of each group, ``(n_groups, n_spots)``."""
    indptr = np.concatenate([[0], np.cumsum([len(rows) for rows in groups])])
    spots = np.concatenate(list(groups))
    return sparse.csr_matrix((np.ones(len(spots), dtype=np.float32), spots, indptr), shape=(len(groups), n_spots))


def _comparisons(
    adata: AnnData,
    groupby: str | None,
    group1: str | Sequence[str] | None,
    group2: str | None,
    idx1: Sequence[int] | None,
    idx2: Sequence[int] | None,
) -> list[Comparison]:
    """Comparisons that are asked for."""
    if (groupby is None) == (idx1 is None):
        raise ValueError("Name the groups with groupby=, or their spots with idx1=; one of the two.")
    if idx1 is not None:
        first = np.unique(row_numbers(idx1, adata))
        second = np.setdiff1d(np.arange(adata.n_obs), first) if idx2 is None else np.unique(row_numbers(idx2, adata))
        found = [Comparison(("group1", "rest" if idx2 is None else "group2"), (first, second))]
    else:
        assert groupby is not None
        names, members = groups_of(adata, groupby)
        spots = {name: members[number].indices.astype(np.int64) for number, name in enumerate(names)}
        chosen = list(names) if group1 is None else [group1] if np.isscalar(group1) else list(group1)
        if unknown := [name for name in [*chosen, *([] if group2 is None else [group2])] if str(name) not in spots]:
            raise ValueError(
                f"adata.obs[{groupby!r}] has no group {unknown[0]!r} (found: {list(names)}); correct the name."
            )
        every = np.sort(np.concatenate(list(spots.values())))
        found = []
        for name in map(str, chosen):
            if name == group2:
                continue
            other = np.setdiff1d(every, spots[name]) if group2 is None else spots[str(group2)]
            found.append(Comparison((name, "rest" if group2 is None else str(group2)), (spots[name], other)))
    for one in found:
        if len(both := np.intersect1d(*one.rows)):
            raise ValueError(
                f"{len(both)} spots are in both groups, the first in row {both[0]}; a spot belongs to one."
            )
        for name, rows in zip(one.names, one.rows, strict=True):
            if len(rows) < LEAST_SPOTS:
                raise ValueError(
                    f"{name} has {len(rows)} spots; a comparison needs at least {LEAST_SPOTS} in each group."
                )
    if not found:
        raise ValueError("There is nothing to compare: group1 and group2 are the same group.")
    return found
