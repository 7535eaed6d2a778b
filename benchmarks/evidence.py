#!/usr/bin/env python3
"""What completed expression says in sums, in tests and in correlations, beside the molecules that it was not given.

    evidence.py [--parts PART ...] [--sets SET ...] [--seeds SEED ...] [--render]

The model is given half of the molecules of a section. Totals are compared with those that it was given, means of regions, calls
of genes and correlations with the other half. For the tests some genes are replaced by ones without a pattern. Results go
into benchmarks/results/evidence, and docs/benchmarks/evidence.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import anndata
import evidence_regions
import evidence_tests
import numpy as np
from compare import RESULTS, ROOT, Code
from numpy.typing import NDArray
from report import table
from scoring import Record
from sets import QUICK, SETS
from sklearn.cluster import KMeans

from lgdist_scvi import LGDiST
from lgdist_scvi.tl._correlations import DETERMINED, agreement, covariance, noise_free, shares, true_variance
from lgdist_scvi.tl._verdicts import CLASSES, LEAST_COUNTS

FOLDER = RESULTS / "evidence"
PAGE = ROOT / "docs" / "benchmarks" / "evidence.md"
FRACTION = 0.5
N_REGIONS = 8

SETS_OF = {
    "values": [*QUICK, "slideseq", "xenium"],
    "tests": ["hippo1", "cortex_151674", "crc16", *evidence_tests.SIMULATED],
}

Floats = NDArray[np.floating]

INTRODUCTION = f"""\
# Totals, regions, tests and correlations

Written by `benchmarks/evidence.py`. The model is given half of the molecules of a section, drawn one by one, with its defaults.

## Totals

The completed total of genes over the measured one, by their mean count per spot (the lower end of the class), where there are
{LEAST_COUNTS} counts and more: over all spots, and the lowest and the highest of {N_REGIONS} compact regions. *Kept* is `keep_observed=True`.
"""
REGIONS = """\
## Means of regions

Squared error of the mean of a gene in a region, in units of its mean in the section, beyond the counting noise of the other half of
the molecules: of the given counts (raw), of completed values, and of `get_region_expression` (combined). Then the coverage of
its 50%, 80% and 95% intervals, widened by the counting noise of the other half. Clusters are found by genes that are not scored.
"""
CALLS = """\
## Is the gene here?

Calls of `detect_expression` at an error of 5%, and whether the other half of the molecules, about as deep, has the gene in the region.
"""
LEVELS = """\
## Tests where nothing differs

`differential_expression` between contiguous halves of regions, between the parts of a region that are near and far from its border,
and between clusters of completed values and the rest. Decoys are drawn around the depth times one share. Of swapped genes
real counts are exchanged between the contiguous halves, spot by spot, at random.
"""
POWERS = """\
## Tests where something differs

Compact groups of spots in two regions. Of the genes that differ clearly between these regions (by four standard errors in the other half of
the molecules), the share called at a false discovery rate of 5%: by the score test and the usual adjustment (counts alone), and guided.
False are the decoys among those called, in the mean. Log ratios: slope of those of the other half on the estimates, for genes with 50
counts in both groups there, and the coverage of 95% intervals.
"""
CORRELATIONS = """\
## Correlation between genes

Correlations of the scored genes over spots, by `get_gene_correlation`, by completed values, and by the given counts, of whose
variance that of counting is subtracted. The truth is estimated from the other half of the molecules: its two quarters have
independent noise, so the products of their errors are those of the estimate alone. Only genes whose true variance the two halves
determine are compared. The slope is that of the estimate on the truth; the error is the root of the mean squared one.
"""


def totals(model: LGDiST, train: anndata.AnnData, seed: int) -> Record:
    """Completed over measured totals, by abundance."""
    counts = train.X.toarray().astype(float)
    mean, found = counts.mean(axis=0), {}
    region = KMeans(N_REGIONS, n_init=1, random_state=seed).fit_predict(train.obsm["spatial"])
    for name, keep in (("completed", False), ("kept", True)):
        completed = model.get_completed_expression(keep_observed=keep, scale="counts", return_numpy=True, silent=True)
        for where, groups in (("section", np.zeros_like(region)), ("region", region)):
            for low, high in zip(CLASSES[:-1], CLASSES[1:], strict=True):
                genes = (mean >= low) & (mean < high)
                # Genes together: if they were chosen by their counts in a region, chance would choose.
                sums = [
                    [values[groups == group][:, genes].sum() for values in (completed, counts)]
                    for group in np.unique(groups)
                ]
                ratios = [given / seen for given, seen in sums if seen >= LEAST_COUNTS]
                if ratios:
                    found[f"{name} {where} {low}"] = [min(ratios), max(ratios)]
    return found


def normalised(covariances: Floats, variance: Floats) -> Floats:
    """Correlations; NaN where a variance is not above zero."""
    deviation = np.sqrt(np.where(variance > 0, variance, np.nan))
    return np.clip(covariances / np.outer(deviation, deviation), -1, 1)


def correlations(model: LGDiST, train: anndata.AnnData, truth: Record, seed: int) -> Record:
    """Slope and error of estimates of the correlation between genes."""
    genes = train.var["eval"].to_numpy()
    counts, depth = train.X[:, genes].toarray(), train.obs["lib"].to_numpy(dtype=float)
    given = shares(counts, depth)
    # The two halves have independent noise.
    variance, error = true_variance(given, shares(truth["counts"], truth["lib"]))
    known = variance > DETERMINED * error
    free = noise_free(truth["counts"], truth["lib"], variance, known, np.random.default_rng(seed))
    measured, noise = covariance(given, given), shares(given, depth).mean(axis=0)
    names = list(train.var_names[genes])
    estimate, std = model.get_gene_correlation(gene_list=names, return_std=True, silent=True)
    completed = model.get_completed_expression(gene_list=names, scale="rate", return_numpy=True, silent=True)
    estimates = {
        "get_gene_correlation": estimate,
        "completed values": np.corrcoef(completed.T),
        "counts, noise subtracted": normalised(measured, np.diag(measured) - noise),
        "counts": np.corrcoef(given.T),
    }
    found: Record = {"genes": int(known.sum())}
    among = np.ix_(known, known)
    for name, matrix in estimates.items():
        agreed = agreement(np.asarray(matrix, dtype=float)[among], free)
        found[name] = {"slope": agreed.slope, "error": agreed.error}
    pairs = np.triu_indices(known.sum(), 1)
    found["standard error"] = float(np.sqrt(np.square(np.asarray(std, dtype=float)[among][pairs]).mean()))
    return found


def named(name: str) -> str:
    """Title of a set for readers."""
    return SETS[name].title if name in SETS else name


def totals_table(records: list[Record]) -> list[str]:
    head = ["section", "seed", "", *(f"{low:g}" for low in CLASSES[:-1])]
    rows = []
    for record in records:
        for name in ("completed", "kept"):
            for where in ("section", "region"):
                values = [record["values"]["totals"].get(f"{name} {where} {low}") for low in CLASSES[:-1]]
                shown = [" to ".join(f"{end:.3f}" for end in dict.fromkeys(value)) if value else "" for value in values]
                rows.append([named(record["set"]), str(record["seed"]), f"{name}, {where}", *shown])
    return table(head, rows)


def regions_table(records: list[Record]) -> list[str]:
    head = ["section", "seed", "regions", "number", "raw", "completed", "combined", "50%", "80%", "95%"]
    rows = []
    for record in records:
        for kind, found in record["values"]["regions"].items():
            errors = [f"{found['errors'][name]:.4f}" for name in ("raw", "completed", "combined")]
            covered = [f"{100 * share:.1f}" for share in found["coverage"]]
            rows.append(
                [
                    named(record["set"]),
                    str(record["seed"]),
                    kind,
                    str(found["n"]),
                    *errors,
                    *covered,
                ]
            )
    return table(head, rows)


def calls_table(records: list[Record]) -> list[str]:
    head = [
        "section",
        "seed",
        "regions",
        "undecided, %",
        *(f"{call}: {what}, %" for call in ("present", "absent") for what in ("share", "claimed wrong", "wrong")),
    ]
    rows = []
    for record in records:
        for kind, found in record["values"]["regions"].items():
            calls = found["detection"]
            shown = [
                f"{100 * calls[call][what]:.1f}" if call in calls else ""
                for call in ("present", "absent")
                for what in ("share", "claimed", "wrong")
            ]
            rows.append([named(record["set"]), str(record["seed"]), kind, f"{100 * calls['undecided']:.1f}", *shown])
    return table(head, rows)


def correlations_table(records: list[Record]) -> list[str]:
    methods = ("get_gene_correlation", "completed values", "counts, noise subtracted", "counts")
    head = ["section", "seed", "genes", *(f"{method}: slope, error" for method in methods), "standard error"]
    rows = []
    for record in records:
        found = record["values"]["correlations"]
        if not found["genes"]:  # none is determined
            continue
        shown = [f"{found[method]['slope']:.2f}, {found[method]['error']:.3f}" for method in methods]
        rows.append(
            [named(record["set"]), str(record["seed"]), str(found["genes"]), *shown, f"{found['standard error']:.3f}"]
        )
    return table(head, rows)


def levels_table(records: list[Record]) -> list[str]:
    """Levels over the seeds of a set together."""
    rows = []
    for name, kind, entries in over_seeds(records, "levels"):
        tests, below, false, called = (
            sum(entry[key] for entry in entries) for key in ("tests", "below", "false", "called")
        )
        rows.append(
            [
                named(name),
                kind,
                str(tests),
                f"{100 * below / tests:.1f}",
                str(called),
                f"{100 * false / max(called, 1):.1f}",
            ]
        )
    return table(
        ["section", "groups, genes", "tests", "p < 0.05, %", "called at 5%", "of these without a difference, %"], rows
    )


def powers_table(records: list[Record]) -> list[str]:
    """Powers over the seeds of a set together."""
    head = ["section", "spots in a group", "genes", "counts alone", "guided", "ratio", "false, counts", "false, guided"]
    head += ["log ratios, raw", "log ratios, combined", "covered, %"]
    rows = []
    for name, size, entries in over_seeds(records, "powers"):
        parts = [part for entry in entries for part in entry]
        true = sum(part["true"] for part in parts)
        power = {
            kind: sum(part[f"{kind} power"] * part["true"] for part in parts if part["true"]) / max(true, 1)
            for kind in ("counts", "guided")
        }
        slopes = []
        for kind in ("raw", "combined"):
            products, squares = np.sum([part[f"{kind} products"] for part in parts], axis=0)
            slopes.append(f"{products / squares:.2f}" if squares else "")
        covered, known = np.sum([part["covered"] for part in parts], axis=0)
        rows.append(
            [
                named(name),
                size,
                str(true),
                f"{power['counts']:.3f}",
                f"{power['guided']:.3f}",
                f"{power['guided'] / max(power['counts'], 1e-9):.1f}",
                *(f"{np.mean([part[f'{kind} false'] for part in parts]):.3f}" for kind in ("counts", "guided")),
                *slopes,
                f"{100 * covered / max(known, 1):.1f}",
            ]
        )
    return table(head, rows)


def over_seeds(records: list[Record], what: str) -> Iterator[tuple[str, str, list[Record]]]:
    """Sets, kinds within them, and what was measured of these with each seed."""
    for name in dict.fromkeys(record["set"] for record in records):
        found = [record["tests"][what] for record in records if record["set"] == name]
        for kind in dict.fromkeys(kind for one in found for kind in one):
            yield name, kind, [one[kind] for one in found if kind in one]


def page() -> str:
    """The tables of what was measured."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    valued, tested = ([record for record in records if part in record] for part in PARTS)
    commits = sorted({record[part]["commit"] for record in records for part in PARTS if part in record})
    sections = [
        (INTRODUCTION, totals_table(valued)),
        (REGIONS, regions_table(valued)),
        (CALLS, calls_table(valued)),
        (LEVELS, levels_table(tested)),
        (POWERS, powers_table(tested)),
        (CORRELATIONS, correlations_table(valued)),
    ]
    lines = [line for text, rows in sections for line in (text, *rows, "")]
    return "\n".join([*lines, f"Commits: {', '.join(f'`{commit}`' for commit in commits)}.", ""])


def values(name: str, seed: int, shared: str) -> Record:
    """What a model with half of the molecules says in sums, regions and correlations."""
    import completion

    of = SETS[name]
    data = completion.load(",".join(f"{shared}/data/{file}" for file in of.files), **of.options)
    train, truth = completion.split_thinned(data, seed, FRACTION)
    LGDiST.setup_anndata(train, library_key="slide", size_factor_key="lib", target_genes_key="eval")
    model = LGDiST(train, seed=seed)
    model.train(enable_progress_bar=False)
    return {
        "totals": totals(model, train, seed),
        "regions": evidence_regions.regions(model, train, truth, seed),
        "correlations": correlations(model, train, truth, seed),
    }


def tests(name: str, seed: int, shared: str) -> Record:
    """Levels and powers of tests."""
    import completion

    if name in evidence_tests.SIMULATED:
        halves = evidence_tests.simulated(evidence_tests.SIMULATED[name], seed)
    else:
        data = completion.load(",".join(f"{shared}/data/{file}" for file in SETS[name].files))
        halves = evidence_tests.real(data, seed)
    return evidence_tests.tests(halves, seed)


PARTS = {"values": values, "tests": tests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--sets", nargs="+", choices={**SETS, **evidence_tests.SIMULATED}, default=None, metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--shared", default=ROOT.parent / "shared", help="folder of bench/ and data/")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if not options.render:
        sys.path.insert(0, f"{options.shared}/bench")
        code = Code(dirty=False)
        if code.changed:
            sys.exit("the model has changes that are not committed: commit them")
        for seed in options.seeds:
            for part in options.parts:
                for name in options.sets or SETS_OF[part]:
                    path = FOLDER / f"{name.replace(', ', '_')}_seed{seed}.json"
                    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                    if record.get(part, {}).get("commit") == code.commit:
                        continue
                    record |= {"set": name, "seed": seed}
                    record[part] = {"commit": code.commit, **PARTS[part](name, seed, options.shared)}
                    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                    print(part, name, seed, flush=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
