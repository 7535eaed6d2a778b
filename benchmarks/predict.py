#!/usr/bin/env python3
"""Whether predictors of expression from images get better when they are trained on completed data.

    predict.py [--sets SET ...] [--seeds SEED ...] [--predictors PREDICTOR ...] [--targets TARGET ...] [--render]

Results are kept as those of ``compare.py`` are, in RESULTS/prediction, and rendered into docs/benchmarks/prediction.md.
What makes them is in the folder ``prediction``.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import anndata
import numpy as np
from compare import DIRTY, MODEL, RESULTS, ROOT, Case, Code, Record, Store, is_current
from imaged import LIBRARY, SETS, sections
from numpy.typing import NDArray
from prediction import PREDICTORS, REFERENCES
from prediction.folds import FOLDS, Fold, predictions, scores, split
from prediction.targets import COMPLETED, N_TARGET, SIMPLE, TARGETS, Kept, measured, target
from report import commits_of, spread, table
from scoring import _sha256

PAGE = ROOT / "docs" / "benchmarks" / "prediction.md"
CACHE = Path(tempfile.gettempdir()) / "lgdist-prediction"
SEEDS = (0, 1, 2)
MEASURED = {"tree": MODEL, "recipe": "benchmarks/prediction", "reading": "benchmarks/imaged.py"}
FITTED = {**PREDICTORS, **REFERENCES}
# What the goal asks for: so many predictors for which completed data are best, and so much less error than with raw ones.
LEAST_PREDICTORS, LEAST_GAIN = 5, 0.05
# What is judged of (e), by metric: every target alone, and the read-outs that were made for the metrics.
JUDGED = {f"`{what}`": dict.fromkeys(("mse", "pearson", "d2"), what) for what in COMPLETED} | {
    f"`{image}_detected`, in `d2` `{image}`": {"mse": f"{image}_detected", "pearson": f"{image}_detected", "d2": image}
    for image in ("lgdist", "lgdist_image")
}
METRICS = {
    "mse": "Error of detected entries, `mse`, lower is better",
    "pearson": "Correlation of detected entries, `pearson`, higher is better",
    "d2": "Deviance of all counts explained, `d2`, higher is better",
}
FORM = "z.3f"
DIFFERENCE = {"mse": "+.1%", "pearson": "+.3f", "d2": "+.3f"}

INTRODUCTION = f"""\
# Prediction from images

The paper claims that six methods which predict expression from the histology image err less, by up to 10% in mean squared
error, when they are trained on data completed by LGDiST {{cite:p}}`cardenas2025lgdist`. Here six small predictors, one of each
family, are trained on sections with and without completion and asked about sections that nothing was learnt from. This page
is written by `make benchmark-prediction`.

**Sections.** The breast tumour, one section left out at a time, and the olfactory bulb, one individual (two sections) left
out at a time. Genes are chosen on the training sections: {N_TARGET} target genes are predicted, and with those that give
context, 1,024 in all as far as there are so many, LGDiST is trained, on the training sections alone and with its defaults. Spots of less than 100
counts are left out.

**Predictors.** All see each spot's patch as embedded by {{class}}`~lgdist_scvi.pp.StainDescriptor`, which knows no weights, and two of
them its surroundings, too. They are written from the ideas of the papers and simpler than the originals: what is compared here
is what they are trained on. Their options are the same for all targets and sets.

| name | predictor | family |
| --- | --- | --- |
| `linear` | ridge regression, the penalty chosen by leaving out sections of the training | |
| `mlp` | a network with one hidden layer on each patch | ST-Net |
| `transformer` | a transformer over all spots of a section | HisToGene |
| `contrastive` | mean expression of the 100 spots nearest in a space that images and expression share | BLEEP |
| `exemplar` | attention to the 10 spots that look most alike, and their expression | EGN |
| `graph` | a graph network over neighbouring spots | SEPAL |
| `mean` | the gene means of the training, without the image: a reference, not one of the six | |

**Targets.** All are log values, $\\log(1 + 10^4\\,y/\\ell)$ with the depth $\\ell$ over all genes, or take the place of one.

| name | what the predictor is trained on |
| --- | --- |
| `raw` (a) | log values as measured, zeros as zeros |
| `detected` (b) | the same, but the loss does not look at zeros |
| `median` (c) | zeros filled with the first median of the surroundings, one to four hops wide, that is not zero |
| `smoothed` (d) | mean of the log values of the spot and its six nearest spots |
| `lgdist` (e) | the expected expression of every entry, the default |
| `lgdist_kept` (e) | detected entries as measured, zeros completed with the expected expression (`keep_observed=True`) |
| `lgdist_detected` (e) | the same with `read_out="detected"`: zeros completed with what would be seen if the gene were detected |
| `lgdist_image`, `lgdist_image_kept`, `lgdist_image_detected` (e) | the same by a model that is given the images |

**Scores** are those of measured counts of sections never seen, never of completed ones.

- `mse` and `pearson` (over the spots, mean over genes): the published metrics, of the log values of detected entries. Zeros are never scored, so a
  predictor trained on higher values gains in `mse` by their level alone.
- `d2`: the share of the Poisson deviance of the training's gene means that is explained, of all counts at the depth that the spot
  has. Predicted log values are turned into rates, and those of each gene multiplied by one factor, by which they add up to the counts
  of the training sections: the level of a target neither helps nor harms. Below 0, the gene means would have been better.
"""
DIFFERENCES = """\
Differences of each completed target (e) from the others, predictor by predictor: the same section and the same seed, mean over such pairs,
the lowest and the highest in brackets, and in how many pairs the completed target is better.
"""

# Of a set, a predictor, a target and a metric: the score of each section with each seed.
Pairs = dict[tuple[str, int], float]
Scores = dict[tuple[str, str, str, str], Pairs]


def collected(store: Store) -> Scores:
    """All scores that are kept."""
    found: Scores = defaultdict(dict)
    for name, folds in FOLDS.items():
        for fold in folds:
            for seed in SEEDS:
                for key, record in store.load(Case(name, fold, seed))["results"].items():
                    predictor, what = key.split()
                    for section, each in record["sections"].items():
                        for metric, value in each.items():
                            found[name, predictor, what, metric][section, seed] = value
    return dict(found)


def expected_pairs(name: str) -> int:
    """Sections and seeds of a set, when all is done."""
    return len(SEEDS) * sum(len(test) for test in FOLDS[name].values())


def paired(found: Scores, name: str, predictor: str, one: str, other: str, metric: str) -> list[float]:
    """Differences between two targets: of errors as a share of the other's, of the rest as they are."""
    mine, theirs = (found.get((name, predictor, what, metric), {}) for what in (one, other))
    pairs = [(mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys())]
    return [a / b - 1 if metric == "mse" else a - b for a, b in pairs]


def better(difference: float, metric: str) -> bool:
    return difference < 0 if metric == "mse" else difference > 0


def wins(differences: list[float], metric: str) -> int:
    """How many differences are for the better."""
    return sum(better(difference, metric) for difference in differences)


def difference_text(differences: list[float], metric: str) -> str:
    """Mean and range of differences, and how many are for the better."""
    if not differences:
        return ""
    return f"{spread(differences, DIFFERENCE[metric])}, {wins(differences, metric)}/{len(differences)}"


def mean_scores(found: Scores, names: Iterable[str], predictor: str, metric: str) -> dict[str, float]:
    """Mean of every target, over sections and seeds and then over sets; nothing unless all targets have the same pairs."""
    totals: dict[str, list[float]] = defaultdict(list)
    for name in names:
        pairs = {what: found.get((name, predictor, what, metric), {}) for what in TARGETS}
        if len({frozenset(each) for each in pairs.values()}) > 1 or not pairs[TARGETS[0]]:
            return {}
        for what, each in pairs.items():
            totals[what].append(fmean(each.values()))
    return {what: fmean(values) for what, values in totals.items()}


def is_best(means: dict[str, float], what: str, metric: str) -> bool:
    """Whether a completed target is better than every simple one."""
    return all(better(means[what] - means[other], metric) for other in SIMPLE)


def verdict(found: Scores) -> list[str]:
    """Whether the goal is met, in words and in numbers."""
    done = all(
        len(found.get((name, predictor, what, metric), {})) == expected_pairs(name)
        for name in FOLDS
        for predictor in FITTED
        for what in TARGETS
        for metric in METRICS
    )
    so_far = "" if done else " so far"
    rows: list[list[str]] = []
    met: dict[str, list[str]] = {"published": [], "all": []}
    places = {**{name: [name] for name in FOLDS}, "both": list(FOLDS)}
    for place, names in places.items():
        means = {(p, m): mean_scores(found, names, p, m) for p in FITTED for m in METRICS}
        if not all(means.values()):
            continue
        title = SETS[place][0] if place in SETS else "both sets"
        for label, read_outs in JUDGED.items():
            best = {m: {p for p in PREDICTORS if is_best(means[p, m], what, m)} for m, what in read_outs.items()}
            together = {"published": best["mse"] & best["pearson"], "all": best["mse"] & best["pearson"] & best["d2"]}
            change = {p: means[p, "mse"][read_outs["mse"]] / means[p, "mse"]["raw"] - 1 for p in FITTED}
            average = fmean(change[p] for p in PREDICTORS)
            for which, predictors in together.items():
                if len(predictors) >= LEAST_PREDICTORS and average <= -LEAST_GAIN:
                    met[which].append(f"{label} on {title}")
            counts = (str(len(each)) for each in (*best.values(), *together.values()))
            rows.append([title, label, *counts, f"{average:+.1%}", f"{change['mean']:+.1%}"])
    if not rows:
        return ["The goal cannot be judged yet."]
    head = ["set", "target", *(f"best in `{metric}`" for metric in METRICS), "in `mse` and `pearson`", "in all three"]
    head += ["`mse` against `raw`", "the same of `mean`"]
    reached = {
        which: f"is met{so_far} by {'; '.join(each)}" if each else f"is not met{so_far}" for which, each in met.items()
    }
    return [
        f"The goal: a completed target (e) better than all of (a) to (d) for at least {LEAST_PREDICTORS} of the {len(PREDICTORS)} "
        f"predictors in `mse` and `pearson`, the published metrics, with an `mse` at least {LEAST_GAIN:.0%} below that with `raw` on "
        f"average. It {reached['published']}. With `d2`, the metric that is fair to zeros, as a third that has to be best, it "
        f"{reached['all']}.",
        "",
        f"{len(rows)} combinations of set and target were judged. The table says for how many predictors each is better than (a) to (d), "
        "by the means over sections and seeds, however little, and how the error changes on average; the gene means, which know no image, "
        "show how much of that is the level alone. The metrics want different things of a target: those of detected entries the level "
        "of what is detected, `d2` that of expression. So the last rows of each set take the read-out that was made for each.",
        "",
        *table(head, rows),
        *in_words(found, so_far),
    ]


def in_words(found: Scores, so_far: str) -> list[str]:
    """What completion is worth by every metric; by those of detected entries only the read-outs made for them."""
    lines = []
    for metric, heading in METRICS.items():
        said = []
        for name in FOLDS:
            for what in COMPLETED:
                if metric != "d2" and not what.endswith("_detected"):
                    continue
                over = {
                    other: [d for p in PREDICTORS for d in paired(found, name, p, what, other, metric)]
                    for other in SIMPLE
                }
                if not all(over.values()):
                    continue
                gains = {other: fmean(each) for other, each in over.items()}
                hardest = (max if metric == "mse" else min)(gains, key=lambda other: gains[other])
                won = {other: f"{wins(over[other], metric)} of {len(over[other])}" for other in ("raw", hardest)}
                says = "an advantage" if better(gains["raw"], metric) else "no advantage"
                form = DIFFERENCE[metric]
                said.append(
                    f"- {SETS[name][0]}, `{what}`: {says} over `raw`{so_far}, {gains['raw']:{form}} on average and better in "
                    f"{won['raw']} pairs; the hardest to beat of the others is `{hardest}` ({gains[hardest]:{form}}, {won[hardest]})."
                )
        if said:
            lines += [f"{heading.split(',')[0]}, over the six predictors:", "", *said, ""]
    return lines


def overview(found: Scores, name: str, metric: str) -> list[str]:
    """Scores of all predictors by target; the best target of each predictor stands out."""
    rows = []
    columns = {p: {what: found.get((name, p, what, metric), {}) for what in TARGETS} for p in FITTED}
    best = {}
    for predictor, each in columns.items():
        means = {what: fmean(pairs.values()) for what, pairs in each.items() if pairs}
        best[predictor] = (min if metric == "mse" else max)(means, key=lambda what: means[what], default=None)
    for what in TARGETS:
        cells = []
        for predictor, each in columns.items():
            text = spread(each[what].values(), FORM)
            mean, _, extent = text.partition(" ")
            cells.append(
                f"**{mean}** {extent}".strip() if best[predictor] == what and predictor in PREDICTORS else text
            )
        rows.append([f"`{what}`", *cells])
    return table(["trained on", *(f"`{predictor}`" for predictor in FITTED)], rows)


def differences(found: Scores, name: str, metric: str) -> list[str]:
    """Paired differences of every completed target from every simple one."""
    rows = []
    for what in COMPLETED:
        for other in SIMPLE:
            each = [paired(found, name, predictor, what, other, metric) for predictor in PREDICTORS]
            cells = [difference_text(pairs, metric) for pairs in [*each, [d for pairs in each for d in pairs]]]
            rows.append([f"`{what}`", f"`{other}`", *cells])
    return table(["target", "against", *(f"`{predictor}`" for predictor in PREDICTORS), "all six"], rows)


def versions(store: Store) -> list[str]:
    """Which code the results are from."""
    cases = (Case(name, fold, seed) for name, folds in FOLDS.items() for fold in folds for seed in SEEDS)
    records = [record for case in cases for record in store.load(case)["results"].values()]
    commits, warning = commits_of(records)
    if not commits:
        return []
    named = f"commit{'s' if len(commits) > 1 else ''} {', '.join(f'`{c}`' for c in commits)}"
    text = f"The results are of the {named}.{warning}"
    if len({tuple(record.get(name) for name in MEASURED) for record in records}) > 1:
        text += " Not all are of the same code; the next run brings them up to date."
    return [text, ""]


def page(store: Store) -> str:
    """What was found, in words and tables."""
    found = collected(store)
    lines = [INTRODUCTION, *versions(store), "## Do completed data train better predictors?", "", *verdict(found)]
    for name in FOLDS:
        if not any(key[0] == name for key in found):
            continue
        title = SETS[name][0]
        number = max(len(pairs) for key, pairs in found.items() if key[0] == name)
        lines += [f"## {title[0].upper()}{title[1:]}", "", f"Mean over sections never seen and seeds, {number} of "]
        lines[-1] += (
            f"{expected_pairs(name)}, with the lowest and the highest in brackets; in bold the best target of each predictor."
        )
        for metric, heading in METRICS.items():
            lines += ["", f"**{heading}**", *overview(found, name, metric)]
        lines += [DIFFERENCES]
        for metric in ("mse", "d2"):
            note = " (as a share of the other's)" if metric == "mse" else ""
            lines += ["", f"**{METRICS[metric].split(',')[0]}, differences{note}**", *differences(found, name, metric)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def measure(options: argparse.Namespace, store: Store) -> None:
    """Train and score what has no result yet, and keep it; one seed of all sets before the next seed."""
    code = Code(dirty=options.dirty, measured=MEASURED)
    if code.changed and not options.dirty:
        sys.exit(f"{', '.join(code.paths)}: there are changes that are not committed; commit them, or give --{DIRTY}")
    model = Code(dirty=options.dirty, measured={"tree": MODEL}).key["tree"]
    complete = Kept(options.cache, f"{DIRTY} {time.time()}" if model == DIRTY else model)
    data = options.shared.resolve() / "data"
    for seed in options.seeds:
        for name in options.sets:
            files = [data / f"{file}{end}" for file in SETS[name][1] for end in (".h5ad", "_fullres.jpg")]
            key = {"data": _sha256(files), **code.key}
            for case in (Case(name, fold, seed) for fold in FOLDS[name]):
                kept = store.load(case)["results"]
                todo = {
                    what: [p for p in options.predictors if not is_current(kept.get(f"{p} {what}"), key, retry=False)]
                    for what in options.targets
                }
                if not any(todo.values()):
                    continue
                whole = sections(name, data)
                fold = split(whole, FOLDS[name][case.protocol])
                for what, predictors in todo.items():
                    start = time.perf_counter()
                    values, seen = target(what, fold.panel, seed, complete) if predictors else (None, None)
                    print(f"{case} {what}: target in {time.perf_counter() - start:.0f} s", flush=True)
                    for predictor in predictors:
                        record = scored(predictor, seed, fold, whole, values, seen)
                        store.merge(case, {}, {f"{predictor} {what}": {**record, **key, "commit": code.commit}})
                        means = {m: fmean(each[m] for each in record["sections"].values()) for m in METRICS}
                        says = ", ".join(f"{metric} {value:.4f}" for metric, value in means.items())
                        print(f"{case} {what} {predictor}: {says} in {record['seconds']:.1f} s", flush=True)


def scored(
    predictor: str,
    seed: int,
    fold: Fold,
    whole: anndata.AnnData,
    values: NDArray[np.floating],
    seen: NDArray[np.bool_],
) -> Record:
    """Scores of a predictor on every section that the fold leaves out."""
    start = time.perf_counter()
    predicted, factors = predictions(fold, FITTED[predictor](seed=seed), values, seen)
    seconds = time.perf_counter() - start
    found = {}
    for section, its_values in predicted.items():
        truth = whole[whole.obs[LIBRARY] == section]
        depth = np.asarray(truth.X.sum(axis=1)).ravel()
        each = scores(its_values, factors, fold, measured(truth, fold.genes), depth)
        found[section] = {metric: round(value, 6) for metric, value in each.items()}
    return {"sections": found, "seconds": round(seconds, 2)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"sets": tuple(FOLDS), "predictors": tuple(FITTED), "targets": TARGETS}
    for option, choices in names.items():
        known = f"only these of: {', '.join(choices)}"
        parser.add_argument(
            f"--{option}", nargs="+", choices=choices, default=choices, metavar=option[:-1].upper(), help=known
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED", help="default: 0 1 2")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of data/")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "prediction", metavar="RESULTS", help="where to keep results"
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="what to write (default: docs/benchmarks/prediction.md)"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where to keep completions (default: {CACHE})")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    parser.add_argument(f"--{DIRTY}", action="store_true", help="run uncommitted code; such a result is never reused")
    options = parser.parse_args(arguments)
    store = Store(options.out.resolve())
    if not options.render:
        warnings.filterwarnings("ignore")
        for name in ("lightning.pytorch", "scvi"):
            logging.getLogger(name).setLevel(logging.ERROR)
        measure(options, store)
    options.page.write_text(page(store), encoding="utf-8")
    print(f"written to {options.page}")


if __name__ == "__main__":
    main()
