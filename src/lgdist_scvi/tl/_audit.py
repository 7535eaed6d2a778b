"""The same questions asked of any completed layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from . import _verdicts as verdicts
from ._correlations import DETERMINED, ratio
from ._inputs import Scale, read
from ._questions import ABSENT_EXPECTED, LEVELS, PRESENT, Sums, contrasts, correlations, gene_columns, null_tests
from ._result import AuditResult

if TYPE_CHECKING:
    from anndata import AnnData

    from ._correlations import Agreement


def audit(
    adata: AnnData,
    layer: str,
    *,
    scale: Scale = "log1p",
    counts_layer: str | None = None,
    held_out_layer: str | None = None,
    groupby: str | None = None,
    std_layer: str | None = None,
    size_factor_key: str | None = None,
    spatial_key: str = "spatial",
    seed: int = 0,
) -> AuditResult:
    """Ask of a completed layer, of any method, what can be relied on.

    Run the method on what :func:`lgdist_scvi.tl.prepare_audit` returns. On other data, what needs held-out molecules or
    decoys is not asked.

    - **Totals.** The completed over the measured total of genes, by abundance. Within 5% is fine.
    - **Over-imputation.** A gene is absent from a region if none of its molecules was measured there, given or held out,
      although the section's mean predicts 5 or more. Share of the absences for which the completed values predict 3 or more:
      then the chance of seeing none is below 5%. Beside it, the share that would be seen by chance if the values were right.
    - **Deviance explained.** Share of the Poisson deviance of the gene means in held-out molecules that is explained.
    - **Contrast.** Slope of log ratios between a region and the section, completed on true. The true ones come from the
      held-out molecules in two halves, whose noise is independent, for genes with 25 or more molecules expected in each.
    - **Null tests.** Share of p < 0.05 of Welch's test of completed rates of decoys between the two halves of a region, and
      of a test of their counts.
    - **Correlations.** Slope of the correlations of completed rates on those without noise, estimated from held-out
      molecules, of genes whose true variance is determined (up to 200).
    - **Coverage.** Coverage of intervals of held-out counts, for genes of 0.3 molecules per spot and more.

    What varies between single spots beyond counting noise belongs to the expression here.

    Parameters
    ----------
    adata
        Annotated spots.
    layer
        Layer with the completed values.
    scale
        Scale of the values: ``"log1p"`` of counts per 10,000, ``"rate"`` (share of the depth), or ``"counts"`` at the depth
        of the spot.
    counts_layer
        Layer with the counts that the method was given; by default ``"counts"`` if there is one, else ``X``.
    held_out_layer
        Layer with the molecules that it was not given; by default ``"held_out"`` if there is one.
    groupby
        Column of ``obs`` with regions; by default 8 compact ones are made from the positions. For several sections whose
        positions overlap, name a column.
    std_layer
        Layer with the standard deviation of the values, on their scale.
    size_factor_key
        Column of ``obs`` with the depth of the spots to which the values refer; by default that of
        :func:`lgdist_scvi.tl.prepare_audit`, or the sum of the counts.
    spatial_key
        Key of the positions in ``obsm``.
    seed
        Seed of regions and of the parts of held-out molecules.

    Returns
    -------
    One page, if printed or shown in a notebook. ``summary`` has a row for each answer: ``question``, ``detail``, ``value``,
    ``ideal``, ``fine`` (missing if it was not asked) and ``verdict``; ``failed`` lists the questions whose answer is not
    fine. ``genes`` has a row for each gene, ``regions`` for each gene and region, ``null_tests`` for each decoy and region,
    ``correlations`` for each pair of genes. :func:`lgdist_scvi.pl.audit` draws it.

    Raises
    ------
    KeyError
        If a named layer, column or array is missing.
    TypeError
        If a matrix has an unsupported type.
    ValueError
        If values are negative, NaN or impossible on their scale, counts are not whole numbers, or regions cannot be
        compared.

    References
    ----------
    Deviance explained: :cite:p:`cameron1996rsquared`; test: :cite:p:`welch1947generalization`; coverage:
    :cite:p:`czado2009predictive`.

    Examples
    --------
    >>> given = lgdist_scvi.tl.prepare_audit(adata, layer="counts", n_decoys=20)
    >>> given.layers["raw"] = given.layers["counts"].copy()  # instead of a completion
    >>> result = lgdist_scvi.tl.audit(given, "raw", scale="counts")
    >>> result.failed
    []
    """
    inputs = read(
        adata,
        layer,
        scale,
        counts_layer,
        held_out_layer,
        groupby,
        std_layer,
        size_factor_key,
        spatial_key,
        seed,
    )
    rng = np.random.default_rng(seed)
    sums, gene_parts, region_parts = Sums(inputs), [], []
    for block in inputs.blocks():
        gene_parts.append(gene_columns(inputs, block))
        region_parts.append(sums.regions(block, rng))
    genes, regions = pd.concat(gene_parts), pd.concat(region_parts, ignore_index=True)
    ratios, contrast_sums = contrasts(regions)
    real = ~regions["gene"].map(genes["decoy"]).to_numpy(dtype=bool)
    real_sums = contrast_sums[~genes["decoy"].reindex(contrast_sums.index).to_numpy(dtype=bool)]
    tests = null_tests(inputs)
    pairs, agreed = correlations(inputs, genes, rng)
    answers = [
        *verdicts.totals(inputs, genes),
        verdicts.over_imputation(regions[real]),
        verdicts.deviance(inputs, genes),
        verdicts.contrast(inputs, real_sums),
        *verdicts.null(inputs, tests),
        verdicts.correlation(inputs, agreed),
        *verdicts.coverage(inputs, genes),
    ]
    summary = pd.DataFrame(answers, columns=verdicts.Answer._fields)
    summary["fine"] = summary["fine"].astype("boolean")
    n_decoys = int(inputs.decoy.sum())
    title = (
        f"Audit of layers[{layer!r}] (scale={scale!r}): {adata.n_obs} spots, {adata.n_vars - n_decoys} genes, "
        f"{n_decoys} decoys, {len(inputs.region_names)} regions"
    )
    table = _gene_table(genes, regions, contrast_sums, tests, pairs, agreed)
    return AuditResult(layer, title, summary, table, _region_table(regions, ratios), tests, pairs)


def _gene_table(
    genes: pd.DataFrame,
    regions: pd.DataFrame,
    contrast_sums: pd.DataFrame,
    tests: pd.DataFrame,
    pairs: pd.DataFrame,
    agreed: Agreement | None,
) -> pd.DataFrame:
    """One row for each gene."""
    table = genes[["decoy", "mean", "measured", "completed"]].copy()
    table["total_ratio"] = ratio(genes["completed"].to_numpy(), genes["measured"].to_numpy())
    absent = regions[(regions["expected"] >= ABSENT_EXPECTED) & (regions["measured"] == 0)]
    table["n_absent"] = absent["gene"].value_counts().reindex(table.index, fill_value=0)
    shown = absent["gene"][absent["completed"] >= PRESENT]
    table["n_over_imputed"] = shown.value_counts().reindex(table.index, fill_value=0)
    table["deviance_explained"] = 1 - ratio(genes["deviance"].to_numpy(), genes["null_deviance"].to_numpy())
    slope = pd.Series(ratio(contrast_sums["upper"], contrast_sums["lower"]), contrast_sums.index)
    table["contrast"] = slope.reindex(table.index)
    false = (tests["p_completed"].astype(float) < verdicts.ALPHA).groupby(tests["gene"]).mean()
    table["false_discoveries"] = false.reindex(table.index)
    table["correlation_slope"] = np.nan
    if agreed is not None:
        chosen = (genes["variance"] > DETERMINED * genes["variance_error"]) & ~genes["decoy"]
        compared = table.index[chosen & table.index.isin([*pairs["gene_1"], *pairs["gene_2"]])]
        table.loc[compared, "correlation_slope"] = agreed.by_gene
    for level in LEVELS:
        table[f"coverage_{level:g}"] = genes[f"coverage_{level:g}"]
    return table


def _region_table(regions: pd.DataFrame, ratios: pd.DataFrame) -> pd.DataFrame:
    """Counts of genes in regions, and their log ratios to the section."""
    table = regions[["gene", "region", "expected", "measured", "completed"]].copy()
    table["completed_contrast"] = ratios["contrast"]
    table["measured_contrast"] = (ratios["held_out_1"] + ratios["held_out_2"]) / 2
    return table
