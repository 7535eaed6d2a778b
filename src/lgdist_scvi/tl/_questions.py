"""The questions that an audit asks, each a function of completed rates and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse, stats

from lgdist_scvi.metrics import count_coverage, poisson_deviance

from ._correlations import DETERMINED, Agreement, agreement, covariance, jackknife, noise_free, shares, true_variance
from ._inputs import gene_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._inputs import Block, Inputs

ABSENT_EXPECTED = 5.0
"""Molecules that the section's mean must predict in a region for none to say that the gene is absent."""
PRESENT = 3.0
"""Expected molecules that are a clear presence: none would be seen with a chance of 5%."""
CONTRAST_EXPECTED = 25.0
"""Expected molecules of a gene in a region, in each half of what is held out, from which the log ratio can be measured."""
PSEUDO = 5.0
"""Molecules added to both sides of a ratio, so that its logarithm has little bias where few are counted."""
TESTED_COUNTS = 10
"""Molecules of a decoy in both halves of a region from which a test can find something."""
ALPHA = 0.05
LEVELS = (0.5, 0.8, 0.95)
COVERAGE_MEAN = 0.3
"""Held-out molecules per spot from which the intervals of a gene are scored: where nearly all counts are 0 any interval holds."""
MOST_GENES = 200
"""Genes of which all correlations are compared."""
ROUNDED = 1e-5
"""Relative difference of two means that single precision alone makes."""
LEAST_EXPECTED = 1e-12
FLOOR = 0.01
"""Share of the gene mean in every rate, as in `metrics.deviance_explained`."""


class Sums:
    """Sums of a block of genes over spots and regions."""

    def __init__(self, inputs: Inputs) -> None:
        n_spots, n_regions = len(inputs.depth), len(inputs.region_names)
        self.inputs = inputs
        self._member = sparse.csr_matrix(
            (np.ones(n_spots), (inputs.region, np.arange(n_spots))), shape=(n_regions, n_spots)
        )

    def of(self, values: NDArray) -> NDArray[np.float64]:
        """Sums over the spots of every region, ``(n_regions, ...)``."""
        return self._member @ values

    def regions(self, block: Block, rng: np.random.Generator) -> pd.DataFrame:
        """Counts of every gene in every region: measured, and as the completed values and the section's mean predict them."""
        it = self.inputs
        held_out = np.zeros_like(block.given) if block.held_out is None else block.held_out
        first = self.of(rng.binomial(held_out.astype(np.int64), 0.5))
        all_depth, held = it.depth + it.held_depth, self.of(held_out)
        measured = self.of(block.given + held_out)
        columns = {
            "measured": measured,
            "expected": np.outer(_share(self.of(all_depth)), measured.sum(axis=0)),
            "completed": self.of(all_depth[:, None] * block.rate),
            "held_out_1": first,
            "held_out_2": held - first,
            "held_out_completed": self.of(it.held_depth[:, None] * block.rate),
        }
        names = it.adata.var_names[block.genes]
        frame = pd.DataFrame(
            {
                "gene": np.repeat(names, len(it.region_names)),
                "region": np.tile(it.region_names, len(names)),
                "depth_share": np.tile(_share(self.of(it.held_depth)), len(names)),
            }
        )
        return frame.assign(**{name: values.T.ravel() for name, values in columns.items()})


def gene_columns(inputs: Inputs, block: Block) -> pd.DataFrame:
    """What is known of each gene by itself."""
    given = block.given.sum(axis=0)
    held_out, held_depth = block.held_out, inputs.held_depth
    table = pd.DataFrame(index=inputs.adata.var_names[block.genes])
    table["decoy"] = inputs.decoy[block.genes]
    table["mean"] = given / len(block.given)
    table["measured"] = given
    table["completed"] = inputs.depth @ block.rate
    null = model = np.full(len(given), np.nan)
    variance, error = null, null
    if held_out is not None:
        expected = held_depth[:, None] * (given / inputs.depth.sum())
        mixed = (1 - FLOOR) * held_depth[:, None] * block.rate + FLOOR * expected
        # Of a gene that was not given the mean is not known.
        null, model = (
            np.where(given > 0, poisson_deviance(held_out, np.maximum(mean, LEAST_EXPECTED)).sum(axis=0), np.nan)
            for mean in (expected, mixed)
        )
        variance, error = true_variance(shares(block.given, inputs.depth), shares(held_out, held_depth))
    table["null_deviance"], table["deviance"] = null, model
    table["variance"], table["variance_error"] = variance, error
    for level in LEVELS:
        table[f"coverage_{level:g}"] = _coverage(inputs, block, level)
    return table


def _coverage(inputs: Inputs, block: Block, level: float) -> NDArray[np.float64]:
    """Coverage of the intervals of held-out counts, gene by gene; NaN where they say little."""
    found = np.full(len(block.genes), np.nan)
    if block.std is None or block.held_out is None:
        return found
    depth = inputs.held_depth[:, None]
    for j in np.flatnonzero(block.held_out.mean(axis=0) >= COVERAGE_MEAN):
        column = (slice(None), [j])
        found[j] = count_coverage(block.held_out[column], depth * block.rate[column], depth * block.std[column], level)
    return found


def contrasts(regions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Log ratios between regions and the section: completed, and measured in two halves of the held-out molecules.

    Parameters
    ----------
    regions
        Table of :meth:`Sums.regions`, one row for each gene and region.

    Returns
    -------
    The log ratios beside the table's genes and regions, NaN where they cannot be measured; and for each gene the sums
    whose ratio is the slope of the completed log ratios on the true ones.
    """
    by_gene = regions.groupby("gene", sort=False, observed=True)
    ratios = regions[["gene", "region"]].copy()
    totals = by_gene[["held_out_1", "held_out_2", "held_out_completed"]].transform("sum")
    half = regions["depth_share"] * (totals["held_out_1"] + totals["held_out_2"]) / 2
    share = regions["held_out_completed"] / totals["held_out_completed"].where(totals["held_out_completed"] > 0)
    # At the measured total of the gene: whether that is kept is another question.
    completed = share * (totals["held_out_1"] + totals["held_out_2"]) / 2
    found = {"contrast": np.log((completed + PSEUDO) / (half + PSEUDO))}
    for name in ("held_out_1", "held_out_2"):
        mean = regions["depth_share"] * totals[name]
        found[name] = np.log((regions[name] + PSEUDO) / (mean + PSEUDO))
    usable = (half >= CONTRAST_EXPECTED) & found["contrast"].notna()
    for name, values in found.items():
        ratios[name] = values.where(usable)
    # What the mean of the regions differs from the section by is the bias of a logarithm of counts, the same in all.
    inner = ratios[list(found)] - ratios.groupby("gene", sort=False, observed=True)[list(found)].transform("mean")
    products = pd.DataFrame(
        {
            "upper": inner["contrast"] * (inner["held_out_1"] + inner["held_out_2"]) / 2,
            "lower": inner["held_out_1"] * inner["held_out_2"],
        }
    )
    sums = products[usable].groupby(regions["gene"][usable], sort=False, observed=True).sum()
    return ratios, sums


def slope_of(sums: pd.DataFrame) -> tuple[float, float]:
    """Slope over all genes, and its standard error."""
    if not len(sums):
        return np.nan, np.nan
    return jackknife(sums["upper"].sum(), sums["lower"].sum(), sums["upper"].to_numpy(), sums["lower"].to_numpy())


def null_tests(inputs: Inputs) -> pd.DataFrame:
    """Tests for a difference where there is none: decoys between the two halves of each region.

    Returns
    -------
    One row for each decoy and region with enough molecules: the p-value of Welch's test of completed rates, and that of
    the counts given their sum, which is binomial.
    """
    genes, rows = np.flatnonzero(inputs.decoy), []
    halves = [_halves(inputs, code) for code in range(len(inputs.region_names))]
    for part in gene_blocks(len(inputs.depth), len(genes)):
        block = inputs.block(genes[part])
        for name, (one, other) in zip(inputs.region_names, halves, strict=True):
            if min(len(one), len(other)) < 2:
                continue
            counts = [block.given[half].sum(axis=0) for half in (one, other)]
            tested = np.flatnonzero(counts[0] + counts[1] >= TESTED_COUNTS)
            p_completed = _welch(block.rate[one][:, tested], block.rate[other][:, tested])
            depth = [inputs.depth[half].sum() for half in (one, other)]
            p_counts = _binomial(counts[0][tested], counts[1][tested], depth[0] / sum(depth))
            names = inputs.adata.var_names[block.genes[tested]]
            rows += list(zip(names, [name] * len(names), p_completed, p_counts, strict=True))
    return pd.DataFrame(rows, columns=["gene", "region", "p_completed", "p_counts"])


def _halves(inputs: Inputs, code: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Spots of a region on both sides of the middle of its longest extent."""
    spots = np.flatnonzero(inputs.region == code)
    centred = inputs.positions[spots] - inputs.positions[spots].mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    order = spots[np.argsort(along, kind="stable")]
    return order[: len(order) // 2], order[len(order) // 2 :]


def _welch(one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """P-values of Welch's test by column; 1 where the means differ by rounding only."""
    means = one.mean(axis=0), other.mean(axis=0)
    equal = np.abs(means[0] - means[1]) <= ROUNDED * (np.abs(means[0]) + np.abs(means[1]))
    error = one.var(axis=0, ddof=1) / len(one), other.var(axis=0, ddof=1) / len(other)
    total = error[0] + error[1]
    safe = np.where(total > 0, total, 1)
    freedom = safe**2 / np.maximum(error[0] ** 2 / (len(one) - 1) + error[1] ** 2 / (len(other) - 1), 1e-300)
    p = 2 * stats.t.sf(np.abs(means[0] - means[1]) / np.sqrt(safe), np.maximum(freedom, 1))
    # Two constants that differ are as certain as can be.
    return np.where(equal, 1.0, np.where(total > 0, p, 0.0))


def _binomial(one: NDArray, other: NDArray, share: float) -> NDArray[np.float64]:
    """Two-sided mid-p-values of counts given their sum, of which `share` is expected in the first half."""
    law = stats.binom(one + other, share)
    at = law.pmf(one) / 2
    return np.minimum(1, 2 * np.minimum(law.cdf(one - 1) + at, law.sf(one) + at))


def correlations(
    inputs: Inputs, genes: pd.DataFrame, rng: np.random.Generator
) -> tuple[pd.DataFrame, Agreement | None]:
    """Correlations of completed rates beside those without noise, of the genes whose variance is determined best.

    Parameters
    ----------
    inputs
        Completed values and counts.
    genes
        Table of :func:`gene_columns`, with the true variances.
    rng
        Parts the held-out molecules.

    Returns
    -------
    One row for each pair of genes, and how they agree; None if fewer than three genes can be compared.
    """
    certainty = (genes["variance"] / genes["variance_error"].where(genes["variance_error"] > 0)).to_numpy()
    certainty[inputs.decoy | ~np.isfinite(certainty)] = -np.inf
    chosen = np.argsort(-certainty, kind="stable")[:MOST_GENES]
    chosen = np.sort(chosen[certainty[chosen] > DETERMINED])
    block = inputs.block(chosen)
    if len(chosen) < 3 or block.held_out is None:
        return pd.DataFrame(columns=["gene_1", "gene_2", "completed", "noise_free"]), None
    known, variance = np.ones(len(chosen), dtype=bool), genes["variance"].to_numpy()[chosen]
    truth = noise_free(block.held_out, inputs.held_depth, variance, known, rng)
    covariances = covariance(block.rate, block.rate)
    deviation = np.sqrt(np.diag(covariances))
    deviation[deviation <= ROUNDED * block.rate.mean(axis=0)] = np.nan  # constant: no correlation
    matrix = covariances / np.outer(deviation, deviation)
    first, second = np.triu_indices(len(chosen), 1)
    names = inputs.adata.var_names[chosen]
    table = pd.DataFrame({"gene_1": names[first], "gene_2": names[second], "completed": matrix[first, second]})
    return table.assign(noise_free=(truth.first + truth.second) / 2), agreement(matrix, truth)


def _share(values: NDArray) -> NDArray[np.float64]:
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)
