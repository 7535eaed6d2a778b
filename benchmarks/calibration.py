#!/usr/bin/env python3
"""Whether the intervals of counts hold what they promise, on molecules and on entries that the model has not seen.

    calibration.py [--sets SET ...] [--seeds SEED ...]

Results are kept as those of ``compare.py`` are, in RESULTS/calibration, and rendered into docs/benchmarks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import anndata
import harness
import matplotlib
import numpy as np
from compare import DIRTY, RESULTS, ROOT, Code, Record, Store, is_current
from matplotlib.figure import Figure
from report import BLUE, GREY, ORANGE, best_peer, spread, table
from sets import DENSE, QUICK, Case
from sums import sums

from lgdist_scvi import LGDiST
from lgdist_scvi.metrics import count_coverage
from lgdist_scvi.model._options import Reading
from lgdist_scvi.model._reader import Reader

PAGE = ROOT / "docs" / "benchmarks" / "calibration.md"
LEVELS = (0.5, 0.8, 0.95)
CURVE = tuple(round(0.1 * i, 1) for i in range(1, 10))
TOLERANCE = 0.03
KINDS = {
    "molecules": "held-out molecules",
    "entries": "held-out entries",
}
SUMS = "sums"
NOISE = "counting noise alone"
CEILING = "d2_if_true"

INTRODUCTION = f"""\
# Calibration

How often the true count lies in the interval that was predicted for it. The target is coverage within three points of
what is promised, on held-out molecules. Defaults only; the sets and protocol B are those of the
[comparison](all_results.md). This page is written by `make benchmark-calibration`.

**Held-out molecules.** 30% of all molecules are held out (protocol B), and the count of every entry of the 128 scored genes
among them is predicted from the rest, at the depth that was held out. Most of the width of such an interval is the noise
of counting, which nobody can avoid; the column "{NOISE}" says what the intervals would cover if they consisted of that
alone.

**Held-out entries.** 5% of all entries, zeros included, which training has not seen: their count is predicted at the depth
of the spot, without anything known of the entry itself. Here the uncertainty of the rate counts for more. These entries
did choose the weights that were kept and set the read-out given detection, but not the intervals.

Counts are whole numbers, so an interval of small counts cannot hold exactly 80%. A count is therefore covered as far as its
own step of the distribution function lies in the interval ({{func}}`~lgdist_scvi.metrics.count_coverage`); intervals
with whole ends, as {{meth}}`~lgdist_scvi.LGDiST.get_count_quantiles` gives them, hold at least what they promise.
"""


class WithStd(LGDiST):
    """Keeps the standard deviation of what the harness asks for, and itself."""

    last: WithStd
    std: Any

    def get_completed_expression(self, **options: Any) -> Any:
        WithStd.last = self
        completed, self.std = super().get_completed_expression(return_std=True, **options)
        return completed


def held_out(
    train: anndata.AnnData, truth: dict[str, Any], score: Callable[..., Record]
) -> Iterator[tuple[str, Record]]:
    """Train a model and see how its predictions of each kind hold."""
    rate, _ = harness.complete(train.copy(), WithStd)
    model, depth = WithStd.last, truth["lib"][:, None]
    rate = rate.to_numpy(dtype=float)
    drawn = [{**truth, "counts": np.random.default_rng(i).poisson(rate * depth)} for i in range(5)]
    left = {"d2": score(rate, truth, train)["d2"], CEILING: fmean(score(rate, draw, train)["d2"] for draw in drawn)}
    yield "molecules", {**coverages(truth["counts"], rate * depth, model.std.to_numpy() * depth), **left}
    yield SUMS, {"kinds": sums(model, train, truth, rate, list(LEVELS))}
    data = model._training_data(model.held_out_, 128)
    rows = data.val_idx
    reading = Reading(return_std=True, scale="counts")
    _, mean, std = Reader(model.module, data.view, reading).read(rows)
    chosen = data.held_out[rows].toarray()
    yield "entries", coverages(data.truth.counts[rows].toarray()[chosen], mean[chosen], std[chosen])


def coverages(counts: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Record:
    """Coverage at every level, and that of the noise of counting alone."""
    levels = sorted({*LEVELS, *CURVE})
    return {
        "coverage": {str(level): count_coverage(counts, mean, std, level) for level in levels},
        NOISE: {str(level): count_coverage(counts, mean, 0 * std, level) for level in levels},
        "n": int(counts.size),
    }


def page(results: dict[str, list[dict[str, Record]]]) -> str:
    """Coverage, set by set."""
    lines = [INTRODUCTION, "```{image} calibration.svg", ":alt: coverage of predicted intervals", ":width: 90%", "```"]
    for kind, title in KINDS.items():
        rows, worst = [], 0.0
        for name, seeds in results.items():
            cells = []
            for what in ("coverage", NOISE):
                for level in LEVELS:
                    found = [records[kind][what][str(level)] for records in seeds]
                    cells.append(spread(found, ".3f"))
                    if what == "coverage":
                        worst = max(worst, abs(fmean(found) - level))
            rows.append([DENSE[name].title, *cells])
        head = ["set", *(f"{level:.0%}" for level in LEVELS), *(f"{level:.0%}, {NOISE}" for level in LEVELS)]
        verdict = "met" if worst <= TOLERANCE else "not met"
        lines += [
            "",
            f"## {title[0].upper()}{title[1:]}",
            "",
            f"Within three points: {verdict}; the worst is off by {worst:.1%}.",
        ]
        lines += table(head, rows)
    lines += of_sums(results)
    lines += remaining(results)
    return "\n".join(lines).strip() + "\n"


def of_sums(results: dict[str, list[dict[str, Record]]]) -> list[str]:
    """Coverage and excess variance of sums, set by set."""
    rows = []
    for name, seeds in results.items():
        for kind in seeds[0][SUMS]["kinds"]:
            found = [records[SUMS]["kinds"][kind] for records in seeds]
            cells = [spread([one["coverage"][str(level)] for one in found], ".3f") for level in LEVELS]
            excess, share = (spread([one[key] for one in found], ".2f") for key in ("excess", "share"))
            rows.append([DENSE[name].title, kind, *cells, excess, share])
    head = ["set", "sum over", *(f"{level:.0%}" for level in LEVELS), "observed / claimed", "share of the width"]
    return ["", OF_SUMS, *table(head, rows)]


OF_SUMS = """\
## Sums

Counts of the held-out molecules, summed over neighbouring spots, over layers, or over the genes of a spot that vary together, and
predicted by {meth}`~lgdist_scvi.LGDiST.sample_expression` with the noise of counting. The coverage of single entries tells little
of this: errors that go together add up. *Observed / claimed* tests the model's own uncertainty, without the noise of counting: the
variance of the errors beyond that noise, relative to that of the samples. It should be 1; above 1 the model is too certain.
*Share of the width* is the share of the claimed variance in that of the whole; where it is small, the ratio is known only roughly.
"""


def remaining(results: dict[str, list[dict[str, Record]]]) -> list[str]:
    """How much of the deviance is left to explain, set by set."""
    rows = []
    for name, seeds in results.items():
        kept = [Store(RESULTS).load(Case(name, "B", seed))["results"] for seed in range(len(seeds))]
        peers = [scores[peer]["d2"] for scores in kept if (peer := best_peer(scores, "B"))]
        ceiling = fmean(records["molecules"][CEILING] for records in seeds)
        ours = fmean(records["molecules"]["d2"] for records in seeds)
        theirs = fmean(peers) if peers else float("nan")
        middle = (ours + ceiling) / 2
        numbers = (ours, theirs, ceiling, middle, middle - ours, middle - theirs)
        rows.append([DENSE[name].title, *(f"{number:.4f}" for number in numbers)])
    head = [
        "set",
        "`d2`",
        "best peer's",
        "if our rates were true",
        "expected ceiling",
        "we are below by",
        "best peer is below by",
    ]
    return ["", LEFT, *table(head, rows)]


LEFT = """\
## What is left to explain

Most of the deviance of held-out molecules is the noise of counting, which no method can predict. How much, can be told from
the rates themselves: counts are drawn from our rates as if these were the truth, and scored like the real ones. What the
rates explain of such counts (*if our rates were true*) is more than any method can explain of the real ones, as far as our
rates are off at random: an error adds to the variation that seems to be there as much as it takes from what is explained.
If all our errors are of that kind, the truth lies in the middle, and this is the *expected ceiling*. Structure that we do
not see at all would raise it. Means over the seeds of the page.
"""


def plot(results: dict[str, list[dict[str, Record]]]) -> Figure:
    """Actual against promised coverage, one line for each set."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        axes.axhspan(-100 * TOLERANCE, 100 * TOLERANCE, color="#eeeeee", label="three points")
        axes.axhline(0, color=GREY, linewidth=1)
        for name, seeds in results.items():
            for what, style in (("coverage", {"color": BLUE}), (NOISE, {"color": ORANGE, "linestyle": ":"})):
                off = [100 * (fmean(r[kind][what][str(level)] for r in seeds) - level) for level in CURVE]
                label = None if name != next(iter(results)) else ("intervals, each set" if what == "coverage" else what)
                axes.plot([100 * level for level in CURVE], off, label=label, **style)
        axes.set_title(title[0].upper() + title[1:], fontsize=10)
        axes.set_xlabel("promised coverage (%)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("actual less promised (points)")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=DENSE, default=list(QUICK), metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of bench/ and data/")
    parser.add_argument(f"--{DIRTY}", action="store_true", help="run uncommitted code; such a result is never reused")
    options = parser.parse_args()
    shared = options.shared.resolve()
    sys.path.insert(0, str(shared / "bench"))
    import completion

    code = Code(dirty=options.dirty)
    store = Store(RESULTS / "calibration")
    for section in options.sets:
        for case in (Case(section, "B", seed) for seed in options.seeds):
            kept = store.load(case)["results"]
            if all(is_current(kept.get(kind), code.key, retry=False) for kind in (*KINDS, SUMS)):
                continue
            if code.changed and not options.dirty:
                sys.exit(f"the model has changes that are not committed: commit them, or give --{DIRTY}")
            files = [shared / "data" / file for file in DENSE[section].files]
            data = completion.load(",".join(str(file) for file in files))
            train, truth = completion.split_thinned(data, case.seed)
            if (layer := anndata.read_h5ad(files[0], backed="r").obs.get("layer")) is not None:
                train.obs["layer"] = layer.reindex(train.obs_names)
            for kind, record in held_out(train, truth, completion.score_thinned):
                store.merge(case, {}, {kind: {**record, **code.key, "commit": code.commit}})
                for name, one in record.get("kinds", {KINDS.get(kind): record}).items():
                    print(f"{case} {name}: {[round(one['coverage'][str(x)], 3) for x in LEVELS]}", flush=True)

    found = {name: [store.load(Case(name, "B", seed))["results"] for seed in range(3)] for name in DENSE}
    results = {
        name: complete for name, seeds in found.items() if (complete := [r for r in seeds if set(r) >= {*KINDS, SUMS}])
    }
    PAGE.write_text(page(results), encoding="utf-8")
    with matplotlib.rc_context({"svg.hashsalt": "calibration"}):
        plot(results).savefig(PAGE.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
