#!/usr/bin/env python3
"""Render the results that ``compare.py`` keeps: a page of the documentation, a table of every figure, and a plot.

    report.py [--results RESULTS] [--pages FOLDER]

The same results give the same files, to the byte.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean

import matplotlib
import pandas as pd
from compare import DIRTY, RESULTS, ROOT, Record, Store
from matplotlib.figure import Figure
from sets import CASES, DENSE, OURS, PEERS, SCORES, SETS, SPARSE, Case

PAGES = ROOT / "docs" / "benchmarks"
# A: the error as a share of the best peer's; B: the explained deviance above the best peer's.
TARGET_EVERYWHERE = {"A": 0.93, "B": 0.01}
TARGET_ON_AVERAGE = {"A": 0.90, "B": 0.02}
TITLES = {"A": "Masked entries (A)", "B": "Count thinning (B)"}
COLUMNS = [
    *("set", "protocol", "seed", "method", "mse", "mae", "rel_rmse", "bias", "dev", "d2", "d2_cal", "d2_gene"),
    *("pcc_gene", "n", "seconds", "peak_rss_mib", "source", "commit", "error"),
]
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # told apart by the colour-blind, too

INTRODUCTION = """\
# All results of the comparison

LGDiST with its defaults and other methods for completion, on public sections, each with the same input and scored by the
same harness. This page is written by `make benchmark`; the file `benchmarks/README.md` in the repository says how to
repeat it. Every figure is in {download}`all_results.csv`.

**A, masked entries.** 30% of the non-zero entries of the 128 genes with the strongest spatial pattern are hidden, and the
score is the mean squared error (`mse`, lower is better) of the log values predicted for them. Zeros are never scored, so
it asks what would be seen where the gene is detected, and does not notice a method that fills zeros which are true.

**B, count thinning.** 30% of all molecules are held out one by one, and the score is the share of the Poisson deviance of
the gene means that the predicted rates explain (`d2`, higher is better). Zeros are scored, and 70% of an entry's own
counts are still there to be used.

Each figure is the mean over seeds, with the lowest and the highest in brackets where there are several. The *best peer*
is the best of all peers in that protocol, chosen for each set and seed in hindsight.
"""
NOTES = """\
`depth_nz` knows nothing but each spot's depth, and `gene_mean` and `gene_mean_nz` nothing but each gene's mean; the names
that end in `_nz` take every zero for a dropout. SpaCKLE (`spackle`) fills zeros by medians before it learns, and under B
it is asked for something that it was not made for; it trains for 1,000 steps or ten minutes, whichever ends first, so its
scores depend on the machine. Seconds are wall time of the whole process, training included, on a machine that
did other things as well; there are none for scores that came with the harness.
"""
SPARSELY = """\
Technologies that detect few molecules in each cell or spot, and the small sections above with 5% or 20% of their molecules,
where the others are held out (B only). Of the former, spots and genes are kept that are too shallow for the sections above. The
targets were set for the sections above, and are shown for comparison.
"""

Results = dict[Case, dict[str, Record]]


def score(records: dict[str, Record], method: str, protocol: str) -> float | None:
    """Main score of a method, if it has one."""
    return records.get(method, {}).get(SCORES[protocol])


def best_peer(records: dict[str, Record], protocol: str) -> str | None:
    """Peer with the lowest error (A) or the highest share of the deviance (B)."""
    scores = {m: s for m in PEERS[protocol] if (s := score(records, m, protocol)) is not None}
    return (min if protocol == "A" else max)(scores, key=lambda method: scores[method], default=None)


def margin(records: dict[str, Record], protocol: str, peer: str | None = None) -> float | None:
    """Our error as a share of a peer's (A), or our score less the peer's (B); of the best peer, if none is named."""
    peer = peer or best_peer(records, protocol)
    ours, theirs = score(records, OURS, protocol), peer and score(records, peer, protocol)
    if ours is None or theirs is None:
        return None
    return ours / theirs if protocol == "A" else ours - theirs


def margins(results: Results, protocol: str, peer: str | None = None) -> dict[str, list[float]]:
    """Margins over a peer of every set, seed by seed."""
    found = defaultdict(list)
    for case, records in results.items():
        if case.protocol == protocol and (value := margin(records, protocol, peer)) is not None:
            found[case.name].append(value)
    return dict(found)


def reaches(value: float, target: float, protocol: str) -> bool:
    return value <= target if protocol == "A" else value >= target


def spread(values: Iterable[float], form: str) -> str:
    """Mean, and the range where there is one."""
    values = sorted(values)
    if not values:
        return ""
    extent = f" ({values[0]:{form}} to {values[-1]:{form}})" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{extent}"


def table(head: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]), ""]


def targets(results: Results, protocol: str) -> list[str]:
    """Whether the targets are met, in words."""
    means = {name: fmean(values) for name, values in margins(results, protocol).items()}
    if not means:
        return ["No set has been scored yet."]
    form, what = (".3f", "of the best peer's `mse`") if protocol == "A" else ("+.4f", "above the best peer's `d2`")
    every, average = TARGET_EVERYWHERE[protocol], TARGET_ON_AVERAGE[protocol]
    bound = "at most" if protocol == "A" else "at least"
    met = [name for name, value in means.items() if reaches(value, every, protocol)]
    mean = fmean(means.values())
    so_far = "" if len(means) == len(DENSE) else " so far"

    def verdict(yes: bool) -> str:
        return f"{'met' if yes else 'not met'}{so_far}"

    return [
        f"- Target on every set, {bound} {every:{form}} {what}: {verdict(len(met) == len(means))}, reached on {len(met)} "
        f"of {len(means)} sets with results ({len(DENSE)} in all).",
        f"- Target on average, {bound} {average:{form}}: {verdict(reaches(mean, average, protocol))}, the mean over these "
        f"sets is {mean:{form}}.",
    ]


def summary(results: Results, protocol: str) -> list[str]:
    """One line for each set: we, the best peer, and how far they are apart."""
    form = ".3f" if protocol == "A" else "+.4f"
    of = "share of" if protocol == "A" else "above"
    head = ["set", f"`{OURS}`", "best peer", "its score", f"{of} the best peer's", "target", f"{of} SpaCKLE's"]
    above, spackle, rows = margins(results, protocol), margins(results, protocol, "spackle"), []
    for name, values in above.items():
        cases = [(case, records) for case, records in results.items() if (case.name, case.protocol) == (name, protocol)]
        both = [records for _, records in cases if margin(records, protocol) is not None]
        peers = [best_peer(records, protocol) for records in both]
        met = reaches(fmean(values), TARGET_EVERYWHERE[protocol], protocol)
        rows.append(
            [
                SETS[name].title,
                spread((records[OURS][SCORES[protocol]] for records in both), ".4f"),
                ", ".join(f"`{peer}`" for peer in dict.fromkeys(peers)),
                spread((r[peer][SCORES[protocol]] for r, peer in zip(both, peers, strict=True)), ".4f"),
                f"**{spread(values, form)}**",
                "met" if met else "not met",
                spread(spackle.get(name, []), form),
            ]
        )
    return table(head, rows) if rows else []


def ranking(results: Results, name: str, protocol: str) -> list[list[str]]:
    """Methods of a set, the best first: name, score, seconds."""
    scores, seconds = defaultdict(list), defaultdict(list)
    for case, records in results.items():
        if (case.name, case.protocol) != (name, protocol):
            continue
        for method in case.methods:
            if (value := score(records, method, protocol)) is not None:
                scores[method].append(value)
                if records[method]["source"] != "shared":
                    seconds[method].append(records[method]["seconds"])
    order = sorted(scores, key=lambda method: fmean(scores[method]), reverse=protocol == "B")
    return [
        [
            f"**`{method}`**" if method == OURS else f"`{method}`",
            spread(scores[method], "z.4f"),
            f"{fmean(seconds[method]):.0f}" if seconds[method] else "",
        ]
        for method in order
    ]


def missing(results: Results) -> list[str]:
    """What has no score, and why; methods that lack the same are named together."""
    lacking, together = defaultdict(list), defaultdict(list)
    for case, records in results.items():
        for method in case.methods:
            record = records.get(method, {"error": "not run yet"})
            if "error" in record:
                reason = " ".join(record["error"].replace("|", "/").split())  # fits a cell of a table
                lacking[case.protocol, reason, method].append(case)
    for (protocol, reason, method), cases in lacking.items():
        together[protocol, reason, tuple(cases)].append(f"`{method}`")
    if not together:
        return []
    text = "These have no score yet; the best peer above is the best of those that have one."
    order = sorted(together, key=lambda group: group[:2])
    asked = {protocol: [case for case in results if case.protocol == protocol] for protocol in SCORES}
    rows = [
        [p, ", ".join(together[p, why, cases]), "everywhere" if list(cases) == asked[p] else places(cases), why]
        for p, why, cases in order
    ]
    return ["", "## Missing", "", text, *table(["protocol", "methods", "where", "why"], rows)]


def places(cases: Iterable[Case]) -> str:
    """Sets of the cases, with the seeds where these are not all of the set's."""
    seeds = defaultdict(list)
    for case in cases:
        seeds[case.name].append(case.seed)
    partly = {name: found for name, found in seeds.items() if found != list(SETS[name].seeds)}
    seed_lists = {name: f" (seed {' and '.join(map(str, found))})" for name, found in partly.items()}
    return "; ".join(SETS[name].title + seed_lists.get(name, "") for name in seeds)


def commits_of(records: Sequence[Record]) -> tuple[list[str], str]:
    """Commits that records are from, and what to say of those that cannot be repeated."""
    commits = sorted({DIRTY if record["tree"] == DIRTY else record["commit"] for record in records})
    warning = f" Results marked `{DIRTY}` are from code that was not committed, and cannot be repeated."
    return commits, warning if DIRTY in commits else ""


def versions(results: Results) -> str:
    """Which code the results of ours are from."""
    ours = [records[OURS] for records in results.values() if OURS in records]
    commits, warning = commits_of(ours)
    if not commits:
        return f"`{OURS}` has not been run yet."
    named = f"{'commit' if len(commits) == 1 else 'the commits'} {', '.join(f'`{c}`' for c in commits)}"
    text = f"`{OURS}` is that of {named}.{warning}"
    if len({record["tree"] for record in ours}) > 1:
        text += " The model's code is not the same in all of them."
    return text


def page(results: Results) -> str:
    dense, sparse = ({c: r for c, r in results.items() if c.name in group} for group in (DENSE, SPARSE))
    lines = [INTRODUCTION, versions(results), "", "```{image} all_results.svg"]
    lines += [":alt: LGDiST against the best peer, by set and protocol", ":width: 100%", "```"]
    for protocol, title in TITLES.items():
        lines += ["", f"## {title}", "", *targets(dense, protocol), *summary(dense, protocol)]
    if any(margins(sparse, protocol) for protocol in SCORES):
        lines += ["", "## Sparse data", "", SPARSELY]
        for protocol, title in TITLES.items():
            if rows := summary(sparse, protocol):
                lines += ["", f"**{title}**", *rows]
    lines += ["", "## All methods, set by set", "", NOTES]
    for name, sections in SETS.items():
        ranked = [ranking(results, name, protocol) for protocol in SCORES]
        if any(ranked):
            head = ["A", "`mse`", "seconds", "B", "`d2`", "seconds"]
            rows = ([*a, *b] for a, b in zip_longest(*ranked, fillvalue=["", "", ""]))
            lines += [f"### {sections.title[0].upper()}{sections.title[1:]}", *table(head, rows)]
    lines += missing(results)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def long_form(results: Results) -> pd.DataFrame:
    """Every figure, one row for each set, protocol, seed and method."""
    rows = []
    for case, records in results.items():
        for method in case.methods:
            if method in records:
                record = dict(records[method])
                if record.get("source") == "shared":
                    record["seconds"] = None  # measured elsewhere
                if record.get("tree") == DIRTY:
                    record["commit"] = DIRTY
                case_columns = {"set": case.name, "protocol": case.protocol, "seed": case.seed, "method": method}
                rows.append({**record, **case_columns})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "peak_rss_mib": "Int64"})


def plot(results: Results) -> Figure:
    """Margins over the best peer: one panel for each protocol, one line for each set, one dot for each seed."""
    names = list(dict.fromkeys(case.name for case in results))
    figure = Figure(figsize=(8, max(4.5, 0.36 * len(names))), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"A": "A: mse as a share of the best peer's", "B": "B: d2 above the best peer's"}
    for axes, (protocol, title) in zip(panels, titles.items(), strict=True):
        found = margins(results, protocol)
        seeds = [(value, names.index(name)) for name, values in found.items() for value in values]
        means = [(fmean(values), names.index(name)) for name, values in found.items()]
        for points, style in (
            (seeds, {"s": 28, "alpha": 0.7, "linewidth": 0, "label": f"{OURS}, each seed"}),
            (means, {"s": 120, "marker": "|", "label": f"{OURS}, mean over seeds"}),
        ):
            axes.scatter([x for x, _ in points], [y for _, y in points], color=BLUE, **style)
        for x, style in (
            (1 if protocol == "A" else 0, {"color": GREY, "label": "best peer"}),
            (TARGET_EVERYWHERE[protocol], {"color": ORANGE, "linestyle": "--", "label": "target for every set"}),
            (
                TARGET_ON_AVERAGE[protocol],
                {"color": ORANGE, "linestyle": ":", "label": "target for the mean over sets"},
            ),
        ):
            axes.axvline(x, linewidth=1, zorder=0, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("lower is better" if protocol == "A" else "higher is better", fontsize=9)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), [SETS[name].title for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def folders(description: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """Where results are read and pages are written, from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results")
    parser.add_argument("--pages", type=Path, default=PAGES, help="where to write (default: docs/benchmarks)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = folders(__doc__, arguments)
    store = Store(options.results)
    kept = {case: store.load(case)["results"] for case in CASES}
    # A dense set without results is named as missing; the sparse ones are optional.
    begun = {case.name for case, records in kept.items() if records} | set(DENSE)
    results = {case: records for case, records in kept.items() if case.name in begun}
    options.pages.mkdir(parents=True, exist_ok=True)
    (options.pages / "all_results.md").write_text(page(results), encoding="utf-8")
    long_form(results).to_csv(options.pages / "all_results.csv", index=False, float_format="%.6g", lineterminator="\n")
    # Fixed names of the parts and no date, or the file would differ each time.
    with matplotlib.rc_context({"svg.hashsalt": "all_results"}):
        plot(results).savefig(options.pages / "all_results.svg", metadata={"Date": None, "Creator": None})
    print(f"written to {options.pages}: all_results.md, all_results.csv, all_results.svg")


if __name__ == "__main__":
    main()
