"""From numbers to a verdict in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from ._inputs import Inputs
from ._questions import ABSENT_EXPECTED, ALPHA, COVERAGE_MEAN, LEVELS, PRESENT, slope_of

if TYPE_CHECKING:
    from ._correlations import Agreement

CLASSES = (0.03, 0.1, 0.3, 1.0, 3.0, np.inf)
"""Bounds of the classes of abundance, in counts per spot."""
LEAST_COUNTS = 100
LEAST_PAIRS = 5
LEAST_TESTS = 20
TOTALS_WITHIN = 0.05
SLOPE_WITHIN = 0.1
COVERAGE_WITHIN = 0.03
NULL_MOST = 2 * ALPHA
ABSENT_MOST = 0.05
"""Share of absences that may be contradicted beyond chance."""
OTHER_SCALE = 5.0
"""Factor of the totals that is more likely a wrong scale than a wrong method."""
NO_HELD_OUT = "not asked: no molecules are held out; see tl.prepare_audit"
NO_DECOYS = "not asked: there are no decoy genes; see tl.prepare_audit"


class Answer(NamedTuple):
    """A row of the summary."""

    question: str
    detail: str
    value: float
    ideal: str
    fine: bool | None
    verdict: str


def totals(inputs: Inputs, genes: pd.DataFrame) -> list[Answer]:
    """Completed over measured totals, by abundance."""
    real, answers = genes[~genes["decoy"]], []
    for low, high in zip(CLASSES[:-1], CLASSES[1:], strict=True):
        of_class = real[(real["mean"] >= low) & (real["mean"] < high)]
        measured, completed = of_class["measured"].sum(), of_class["completed"].sum()
        if measured < LEAST_COUNTS:
            continue
        ratio = completed / measured
        fine = bool(abs(ratio - 1) <= TOTALS_WITHIN + 2 / np.sqrt(measured))
        verdict = "kept" if fine else f"{ratio:.3g} times what was counted"
        if max(ratio, 1 / max(ratio, 1e-12)) > OTHER_SCALE:
            verdict += f"; is scale={inputs.scale!r} right?"
        bounds = f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"
        answers.append(Answer("totals", f"genes of {bounds} counts per spot", ratio, "1", fine, verdict))
    none = Answer("totals", "", np.nan, "1", None, f"not asked: no class of genes has {LEAST_COUNTS} counts")
    return answers or [none]


def over_imputation(regions: pd.DataFrame) -> Answer:
    """Absent genes that the completed values show."""
    expecting = regions[regions["expected"] >= ABSENT_EXPECTED]
    present = expecting["completed"] >= PRESENT
    n_absent = int((expecting["measured"] == 0).sum())
    n_wrong = int((present & (expecting["measured"] == 0)).sum())
    what = ("over-imputation", f"{n_absent} times a gene is absent from a region")
    # With right values, some present genes would be missed by chance.
    chance = float(np.exp(-expecting["completed"][present]).sum())
    if n_absent < LEAST_PAIRS:
        return Answer(
            *what, np.nan, "0", None, f"not asked: fewer than {LEAST_PAIRS} absences among {len(expecting)} pairs"
        )
    fine = bool(n_wrong <= chance + 2 * np.sqrt(chance) + ABSENT_MOST * n_absent)
    ideal = f"{min(chance / n_absent, 1):.2g} by chance"
    verdict = "absent genes stay absent" if fine else f"{n_wrong} absent genes are completed as clearly present"
    return Answer(*what, n_wrong / n_absent, ideal, fine, verdict)


def deviance(inputs: Inputs, genes: pd.DataFrame) -> Answer:
    """Share of the deviance of the gene means that is explained."""
    what = ("deviance explained", "of held-out molecules, beyond gene means")
    real = genes[~genes["decoy"]]
    null = real["null_deviance"].sum()
    if inputs.held_out is None or null <= 0:
        return Answer(*what, np.nan, "above 0", None, NO_HELD_OUT)
    explained = 1 - real["deviance"].sum() / null
    fine = bool(explained > 0)
    return Answer(*what, explained, "above 0", fine, "better than gene means" if fine else "no better than gene means")


def contrast(inputs: Inputs, sums: pd.DataFrame) -> Answer:
    """Slope of the differences between regions."""
    what = ("contrast", f"slope of log ratios between regions, {len(sums)} genes")
    if inputs.held_out is None:
        return Answer(*what, np.nan, "1", None, NO_HELD_OUT)
    slope, error = slope_of(sums)
    if not np.isfinite(error):
        return Answer(*what, np.nan, "1", None, "not asked: too few molecules to measure differences")
    fine = bool(abs(slope - 1) <= SLOPE_WITHIN + 2 * error)
    changed = "lost" if slope < 1 else "added"
    return Answer(*what, slope, "1", fine, "kept" if fine else f"{abs(1 - slope):.0%} of the contrast is {changed}")


def null(inputs: Inputs, tests: pd.DataFrame) -> list[Answer]:
    """False discoveries between halves of a region."""
    rows = []
    for column, kind in (("p_completed", "completed values"), ("p_counts", "given counts, for comparison")):
        what = ("null tests", f"p < {ALPHA:g} for decoys, {kind}")
        if not inputs.decoy.any():
            rows.append(Answer(*what, np.nan, f"{ALPHA:g}", None, NO_DECOYS))
        elif len(tests) < LEAST_TESTS:
            rows.append(Answer(*what, np.nan, f"{ALPHA:g}", None, f"not asked: fewer than {LEAST_TESTS} tests"))
        else:
            share = float((tests[column] < ALPHA).mean())
            fine = None if column == "p_counts" else bool(share <= NULL_MOST)
            times = f"{share / ALPHA:.1f} times as many false discoveries as promised"
            good = "as many false discoveries as promised, or fewer"
            rows.append(Answer(*what, share, f"{ALPHA:g}", fine, good if share <= NULL_MOST else times))
    return rows


def correlation(inputs: Inputs, found: Agreement | None) -> Answer:
    """Inflation of correlations."""
    if found is None or not np.isfinite(found.slope):
        why = NO_HELD_OUT if inputs.held_out is None else "not asked: no correlations that can be measured"
        return Answer("correlations", "slope on those without noise", np.nan, "1", None, why)
    detail = f"slope on those without noise, {len(found.by_gene)} genes"
    allowed = SLOPE_WITHIN + 2 * np.nan_to_num(found.slope_error)
    fine = bool(abs(found.slope - 1) <= allowed)
    verdict = "too large: use them for no network" if found.slope > 1 else "too small: noise is left in the values"
    return Answer("correlations", detail, found.slope, "1", fine, "right" if fine else verdict)


def coverage(inputs: Inputs, genes: pd.DataFrame) -> list[Answer]:
    """Coverage of the intervals of held-out counts."""
    real, rows = genes[~genes["decoy"]], []
    for level in LEVELS:
        what = ("coverage", f"of {level:.0%} intervals of held-out counts")
        covered = real[f"coverage_{level:g}"].mean()
        if inputs.std is None or inputs.held_out is None:
            why = "not asked: no std_layer" if inputs.std is None else NO_HELD_OUT
            rows.append(Answer(*what, np.nan, f"{level:g}", None, why))
        elif not np.isfinite(covered):
            why = f"not asked: no gene has {COVERAGE_MEAN:g} held-out molecules per spot"
            rows.append(Answer(*what, np.nan, f"{level:g}", None, why))
        else:
            fine = bool(abs(covered - level) <= COVERAGE_WITHIN)
            wrong = "too narrow" if covered < level else "too wide"
            rows.append(Answer(*what, covered, f"{level:g}", fine, "right" if fine else wrong))
    return rows
