#!/usr/bin/env python3
"""Which method for which question: the page for a reader who chooses, from what the benchmarks keep.

    overview.py [--results RESULTS] [--pages FOLDER]

Runs nothing. The same results give the same files, to the byte. Without ``--pages`` the tables of README and landing page are
renewed too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib
from compare import ROOT, Record, Store
from domains import CORTEX
from matplotlib.figure import Figure
from report import BLUE, GREY, PAGES, Results, folders, margins, score, table
from sets import CASES, OURS, PEERS, QUICK, SETS, SPARSE

PUBLISHED = ("magic", "scvi", "spackle")
"""Tools that are shown wherever they have a score, beside the best of all."""
N_BEST = 5
FARTHEST = 6.0
"""Times the lowest value that an axis shows at most."""
PATCH = 13
TECHNOLOGIES = [name for name in SPARSE if not name.endswith("pct")]
"""Sets that are sparse by themselves."""
CELLS = ("xenium", "merfish", "starmap", "osmfish")
RARE = (0.03, 0.1)
"""Lower ends of classes of genes by their mean count."""
KINDS_OF_MEANS = {OURS: "combined", "completed": "completed", "counts": "raw"}
BEGIN, END = "<!-- measured: written by benchmarks/overview.py -->", "<!-- end of measured -->"
WITH_TABLE = (ROOT / "README.md", ROOT / "docs" / "index.md")


class Method(NamedTuple):
    """How a method is called on the page, and what it does."""

    title: str
    does: str


METHODS = {
    OURS: Method("LGDiST", "this package, with its defaults"),
    "spatial_factors_eb": Method(
        "smooth factors",
        "a few factors per spot that are smooth over the tissue, negative-binomial counts; then each count is shrunk to its expectation",
    ),
    "knn_eb": Method(
        "similar spots",
        "the mean of neighbours in the tissue and in expression, to which each count is shrunk",
    ),
    "knn_mix": Method("similar spots, unshrunk", "the same mean, without shrinkage"),
    "ridge_eb": Method(
        "regression",
        "each gene regressed on other genes and on the neighbours, to which each count is shrunk, like SAVER",
    ),
    "ridge_nz": Method("regression", "the same regression, of detected entries only"),
    "knn_mix_nz": Method("similar spots", "the same mean, of detected entries only"),
    "svd": Method("low rank", "truncated singular value decomposition of the log values"),
    "svd_nz": Method("low rank", "the same, of detected entries only"),
    "laplacian": Method("smoothing", "each gene smoothed over the tissue, as strongly as suits it"),
    "laplacian_nz": Method("smoothing", "the same, of detected entries only"),
    "knn18": Method("mean of 18 neighbours", "plain mean of the nearest 18 spots"),
    "knn18_nz": Method("mean of 18 neighbours", "the same, of detected entries only"),
    "knn6_nz": Method("mean of 6 neighbours", "plain mean of detected entries of the nearest 6 spots"),
    "depth_nz": Method("depth alone", "each gene regressed on the depth of the spot: no biology"),
    "gene_mean": Method("gene means", "the mean of each gene"),
    "gene_mean_nz": Method("gene means", "the mean of detected entries of each gene"),
    "median": Method("median filling", "zeros filled with medians of the surroundings, as in SpaRED"),
    "magic": Method("MAGIC", "diffusion over spots of similar expression"),
    "scvi": Method("scVI", "variational autoencoder of counts; does not know the tissue"),
    "resolvi": Method("ResolVI", "variational autoencoder of counts with neighbours, for segmented cells"),
    "stark": Method("STARK", "smoothing over a graph that is learnt along"),
    "nest": Method("NEST", "graph network"),
    "stagate": Method("STAGATE", "graph attention autoencoder"),
    "graphst": Method("GraphST", "graph network with contrastive learning"),
    "spackle": Method("SpaCKLE", "transformer over neighbours, trained on median-filled values"),
    # In hidden spots.
    "tuned mean": Method("tuned mean", "mean of neighbours, its width and its weight of the gene means tuned"),
    "mean of 6": Method("mean of 6 neighbours", ""),
    "mean of 18": Method("mean of 18 neighbours", ""),
    "mean of 60": Method("mean of 60 neighbours", ""),
    # Of regions, tests and domains.
    "counts": Method("counts alone", "the measured counts, and their score test"),
    "completed": Method("completed values", ""),
    "banksy": Method("BANKSY", "each gene beside its mean and its gradient around the spot"),
    "smoothed_pca": Method("smoothed components", "principal components of the mean of 19 spots"),
    "raw_pca": Method("components", "principal components of each spot by itself"),
}


class Question(NamedTuple):
    """Scores of methods that answer a question."""

    title: str
    score: str
    """What the score is, for an axis."""
    scores: dict[str, float]
    """Mean score by method, over the same sets and seeds for all."""
    higher: bool

    def ordered(self) -> list[str]:
        return sorted(self.scores, key=lambda method: self.scores[method], reverse=self.higher)


def averaged(results: Results, protocol: str, names: Iterable[str]) -> dict[str, float]:
    """Mean over sets of the mean over seeds, for the methods that have a score in each set."""
    by_set: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, records in results.items():
        if case.protocol == protocol and case.name in names:
            for method in (OURS, *PEERS[protocol]):
                if (value := score(records, method, protocol)) is not None:
                    by_set[case.name][method].append(value)
    return common([{method: fmean(values) for method, values in of.items()} for of in by_set.values()])


def common(of_sets: list[dict[str, float]]) -> dict[str, float]:
    """Means over sets of what each of them has."""
    shared = set.intersection(*map(set, of_sets)) if of_sets else set()
    return {method: fmean(of[method] for of in of_sets) for method in sorted(shared)}


def hidden_files(results: Path, patch: int) -> list[Path]:
    return sorted((results / "hidden").glob(f"*_patch{patch}_seed*.json"))


def hidden(results: Path, patch: int) -> list[dict[str, float]]:
    """Explained deviance in spots that were hidden, by set."""
    found = []
    for path in hidden_files(results, patch):
        folds = json.loads(path.read_text(encoding="utf-8"))["explained"]
        found.append({method: fmean(fold[method] for fold in folds) for method in folds[0]})
    return found


def leads(of_sets: list[dict[str, float]]) -> list[float]:
    """By how much we are above the best other method, in each set."""
    return [of[OURS] - max(value for method, value in of.items() if method != OURS) for of in of_sets]


def kept(results: Path, folder: str) -> list[Record]:
    """What a benchmark has kept."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((results / folder).glob("*.json"))]


def plot(questions: list[Question]) -> Figure:
    """One panel for each question, one bar for each of its best methods and of the published ones."""
    n_rows = len(questions) // 2
    figure = Figure(figsize=(8, 2.6 * n_rows), layout="constrained")
    figure.get_layout_engine().set(hspace=0.04, wspace=0.06)
    for axes, question in zip(figure.subplots(n_rows, 2).flat, questions, strict=True):
        order = question.ordered()
        names = [name for name in order if name in order[:N_BEST] or name in PUBLISHED]
        values = [question.scores[name] for name in names]
        axes.barh(range(len(names)), values, color=[BLUE if name == OURS else "#c8c8c8" for name in names], height=0.7)
        # What lies far off would leave the others without a difference to see.
        limit = min(1.18 * max(values), FARTHEST * min(values))
        for place, value in enumerate(values):
            cut = value > limit
            style = {"ha": "right", "color": "black"} if cut else {"ha": "left", "color": GREY}
            axes.text(
                min(value, limit), place, f" {value:.3f} " + ("\u2192" if cut else ""), va="center", fontsize=8, **style
            )
        axes.set_yticks(range(len(names)), [METHODS[name].title for name in names], fontsize=9)
        axes.set_ylim(max(len(names), N_BEST) - 0.4, -0.6)  # bars are as thick in every panel
        axes.set_xlim(0, limit)
        axes.set_title(question.title, fontsize=10, loc="left")
        axes.set_xlabel(question.score, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


INTRODUCTION = """\
# Which method for which question

For someone who chooses a tool. All methods got the same counts of the same sections and were scored by the same program, by what
they say of molecules or spots that were kept from them. LGDiST ran with its defaults everywhere. [All results](all_results.md) has
every figure of every method, the targets that we set, and how to repeat it.

```{{image}} comparison.svg
:alt: Scores of LGDiST and of other methods for detected values, expected expression, sparse tissue and hidden spots
:width: 100%
```

Means over sections and seeds. Only methods that have a score in all sections of a panel are shown: the best {n}, and published tools.
"""
METHODS_TITLE = """\
## The methods

Beside published tools there are plain ones that are hard to beat. Under the first question each of the plain ones sees detected entries
only, because that question is about detected values.
"""
LOSSES = """\
## Where something else is better

- **Large patches without spots.** {patches} ([hidden spots](hidden.md)).
- **Layers of the cortex as clusters.** {layers} ([domains](domains.md)).
- **Totals of rare genes.** {totals} ([totals](evidence.md#totals)). Sum counts if you need totals.
- **Whole layers or large clusters.** There the counts themselves are as good as completed values. `get_region_expression` moves towards
  them by itself ([regions](evidence.md#means-of-regions)).
- **Sections of a few hundred spots.** There is little to learn from. Check with `evaluate_completion` that the model beats the mean of the
  neighbours on your section.
- **Training predictors from images.** Completed values were the best to learn from by some scores and in some tissue only
  ([prediction from images](prediction.md)).
- **A single-cell reference is at hand.** No method here uses one.
"""


PARTLY = """\
STARK, NEST, STAGATE, GraphST and ResolVI were run on some of the sections only; their scores are in [all results](all_results.md).
"""


def signed(values: list[float]) -> str:
    return f"{fmean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def answers(results: Results, folder: Path, evidence: list[Record]) -> list[list[str]]:
    """The question, the answer, how much better it is, and where the figures are."""
    found = []
    if ratios := [fmean(values) for values in margins(results_of(results, QUICK), "A").values()]:
        found.append(
            [
                "What would be seen where a gene is detected, the question of the paper?",
                '`get_completed_expression(read_out="detected")`',
                f"the error is {100 * (1 - fmean(ratios)):.0f}% below that of the best other method ({100 * (1 - max(ratios)):.0f}% to "
                f"{100 * (1 - min(ratios)):.0f}%, by section)",
                "[all results](all_results.md#masked-entries-a)",
            ]
        )
    for title, names, anchor in (
        ("What is expressed in each spot of a deep section (Visium, ST)?", QUICK, "count-thinning-b"),
        (
            "The same, where few molecules are counted (Slide-seq, Stereo-seq, Xenium, MERFISH, STARmap, osmFISH)?",
            TECHNOLOGIES,
            "sparse-data",
        ),
        (
            "The same, in deep sections with 5% of their molecules left?",
            {name: of for name, of in SPARSE.items() if name.endswith("_5pct")},
            "sparse-data",
        ),
    ):
        above = [fmean(values) for values in margins(results_of(results, names), "B").values()]
        if above:
            found.append(
                [
                    title,
                    "`get_completed_expression()`",
                    f"{signed(above)} of the deviance explained beyond the best other method",
                    f"[all results](all_results.md#{anchor})",
                ]
            )
    for title, patch in (("What is in spots that were not measured?", 1), ("In patches of 13 such spots?", PATCH)):
        if above := leads(hidden(folder, patch)):
            found.append(
                [
                    title,
                    "`observed_layer=` at setup, then `get_completed_expression()`",
                    f"{signed(above)} of the deviance explained beyond the best other method",
                    "[hidden spots](hidden.md)",
                ]
            )
    if errors := errors_of_means(evidence):
        found.append(
            [
                "What is the mean of a gene in a small region (7 spots)?",
                "`get_region_expression`",
                f"the squared error is {100 * fmean(e['combined'] / e['raw'] for e in errors):.0f}% of that of the counts, "
                f"{100 * fmean(e['combined'] / e['completed'] for e in errors):.0f}% of that of completed values",
                "[regions](evidence.md#means-of-regions)",
            ]
        )
    tested = powers(evidence)
    if tested:
        found.append(
            [
                "Which genes differ between two groups of 10 to 30 spots?",
                "`differential_expression`",
                f"{gain(tested):.1f} times as many of the genes that differ as a test of the counts alone, at the same false discovery rate",
                "[tests](evidence.md#tests-where-something-differs)",
            ]
        )
    return found


def powers(evidence: list[Record]) -> list[Record]:
    """What was found between groups that differ, by set and seed."""
    return [entry["tests"]["powers"] for entry in evidence if "tests" in entry]


def found_genes(tested: list[Record]) -> tuple[float, float]:
    """Share of the genes that differ between groups of 10 to 30 spots which is found, guided and by counts alone."""
    parts = [part for powers in tested for size in ("10", "20", "30") for part in powers.get(size, []) if part["true"]]
    n_true = sum(part["true"] for part in parts)
    guided, counts = (sum(part[f"{kind} power"] * part["true"] for part in parts) for kind in ("guided", "counts"))
    return guided / n_true, counts / n_true


def gain(tested: list[Record]) -> float:
    """Genes found in groups of 10 to 30 spots, guided over counts alone."""
    guided, counts = found_genes(tested)
    return guided / max(counts, 1e-9)


def errors_of_means(evidence: list[Record]) -> list[dict[str, float]]:
    """Squared errors of means of 7 spots, by set and seed."""
    means = [entry["values"]["regions"] for entry in evidence if "values" in entry]
    return [of["7 spots"]["errors"] for of in means if "7 spots" in of]


def results_of(results: Results, names: Iterable[str]) -> Results:
    return {case: records for case, records in results.items() if case.name in names}


def costs(folder: Path) -> list[str]:
    """Time and memory, in words."""
    section, large = folder / "speed" / "section.json", folder / "speed" / "large.json"
    lines = ["## Time and memory", ""]
    if section.exists():
        of = json.loads(section.read_text(encoding="utf-8"))
        seconds = {name: fmean(run["seconds"] for run in runs) for name, runs in of["runs"].items() if runs}
        told = ", ".join(f"{METHODS[name].title} {value:.0f} s" for name, value in seconds.items())
        n_spots, n_genes = of["shape"]
        lines.append(
            f"A section of {n_spots:,} spots and {n_genes:,} genes, from counts to completed values on two cores: {told}."
        )
    if large.exists():
        run = json.loads(large.read_text(encoding="utf-8"))["runs"][-1]
        lines.append(
            f"{run['n_spots']:,} spots and {run['n_genes']:,} genes on one core: {run['seconds'] / 60:.0f} minutes, "
            f"{run['peak_gb']:.1f} GB of memory."
        )
    return [*lines, "See [speed and memory](speed.md).", ""]


def behind(folder: Path) -> str:
    """Where hidden patches are told better by others, in words."""
    found = {
        path.stem.partition("_patch")[0]: lead
        for path, lead in zip(hidden_files(folder, PATCH), leads(hidden(folder, PATCH)), strict=True)
    }
    lost = [f"{SETS[name].title} ({lead:+.4f})" for name, lead in found.items() if lead < 0]
    if not lost:
        return f"We know of no section where another method tells patches of {PATCH} hidden spots better"
    return f"In patches of {PATCH} hidden spots, smooth factors explain more of {', '.join(lost)}; we explain more of the other {len(found) - len(lost)}"


def agreement(folder: Path, method: str, of: Iterable[str], *, vote: bool = False) -> float:
    """Mean adjusted Rand index of domains by the better recipe, with or without a vote of neighbours."""
    found = [json.loads((folder / "domains" / f"{name}.json").read_text(encoding="utf-8")) for name in of]
    return max(
        fmean(fmean(both[vote] for both in record[method]["domains"][recipe].values()) for record in found)
        for recipe in ("mixture", "kmeans")
    )


def layers(folder: Path) -> str:
    """How well clusters of our niches and of BANKSY's representation agree with annotated layers, in words."""
    alone, voted, of_cells = (
        [agreement(folder, method, of, vote=vote) for method in (OURS, "banksy")]
        for of, vote in ((CORTEX, False), (CORTEX, True), (["starmap"], False))
    )
    return (
        f"By the better of two ways to cluster, BANKSY's representation agrees with the layers of four Visium sections about as well as ours (adjusted Rand "
        f"index {alone[1]:.3f}, ours {alone[0]:.3f}), and better once neighbours vote ({voted[1]:.2f}, ours {voted[0]:.2f}); ours agrees "
        f"better with those of the visual cortex by STARmap ({of_cells[0]:.2f}, BANKSY {of_cells[1]:.2f})"
    )


def totals(evidence: list[Record]) -> str:
    """How far completed totals of rare genes are from the counted ones where they are furthest, in words."""
    ranges = []
    for name in ("xenium", "slideseq"):
        found = [entry["values"]["totals"] for entry in evidence if entry["set"] == name]
        ratios = [of[f"completed section {low}"][0] for of in found for low in RARE if f"completed section {low}" in of]
        ranges.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
    return (
        f"Completed totals of genes with fewer than 0.3 counts a spot are {ranges[0]} of the counted ones in a Xenium section, and "
        f"{ranges[1]} in a Slide-seq section"
    )


def page(results: Results, folder: Path, shown: list[Question]) -> str:
    evidence = kept(folder, "evidence")
    used = {method for question in shown for method in question.scores}
    told: dict[str, str] = {}
    for name, method in METHODS.items():
        if name in used and method.does:
            told.setdefault(method.title, method.does)
    lines = [
        INTRODUCTION.format(n=N_BEST),
        "## In short",
        "",
        *(
            f"- **{question}** {call}: {measured} ({source})."
            for question, call, measured, source in answers(results, folder, evidence)
        ),
        "",
        *costs(folder),
        LOSSES.format(patches=behind(folder), layers=layers(folder), totals=totals(evidence)),
        METHODS_TITLE,
        *table(["name", "what it does"], ([title, does] for title, does in told.items())),
        PARTLY,
    ]
    return "\n".join(lines).strip() + "\n"


def short(shown: list[Question], folder: Path) -> str:
    """Table for README and landing page."""
    lines = []
    for question in shown:
        first, second = (next(name for name in question.ordered() if (name == OURS) is ours) for ours in (True, False))
        scvi = question.scores.get("scvi")
        lines.append(
            [
                f"{question.title}: {question.score}",
                f"**{question.scores[first]:.3f}**",
                f"{question.scores[second]:.3f} ({METHODS[second].title})",
                "" if scvi is None else f"{scvi:.3f}",
            ]
        )
    tested = powers(kept(folder, "evidence"))
    lines.append(
        ["Genes found between groups of 10 to 30 spots", f"**{gain(tested):.1f}**", "1 (test of the counts)", ""]
    )
    runs = json.loads((folder / "speed" / "section.json").read_text(encoding="utf-8"))["runs"]
    seconds = [f"{fmean(run['seconds'] for run in runs[name]):.0f} s" for name in (OURS, "scvi")]
    lines.append(["Time of a Visium section, two cores", f"**{seconds[0]}**", "", seconds[1]])
    large = json.loads((folder / "speed" / "large.json").read_text(encoding="utf-8"))["runs"][-1]
    lines.append([f"Memory for {large['n_spots']:,} spots", f"**{large['peak_gb']:.1f} GB**", "", ""])
    return "\n".join(table(["", "LGDiST", "best other", "scVI"], lines)).strip()


def with_table(text: str, rows: str) -> str:
    """A page with a new table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{after}"


def questions(results: Results, folder: Path) -> list[Question]:
    return [
        Question(
            "Detected values, five deep sections", "error (mse), lower is better", averaged(results, "A", QUICK), False
        ),
        Question("Expression, five deep sections", "explained deviance (d2)", averaged(results, "B", QUICK), True),
        Question(
            "Expression, six sparse sections", "explained deviance (d2)", averaged(results, "B", TECHNOLOGIES), True
        ),
        Question("Hidden spots, five sections", "explained deviance (d2)", common(hidden(folder, 1)), True),
    ]


def further(results: Results, folder: Path) -> list[Question]:
    """What the comparison shows beyond the table of the landing page."""
    evidence = kept(folder, "evidence")
    errors = errors_of_means(evidence)
    relative = {name: fmean(of[kind] / of["raw"] for of in errors) for name, kind in KINDS_OF_MEANS.items()}
    found = dict(zip((OURS, "counts"), found_genes(powers(evidence)), strict=True))
    domains = {name: agreement(folder, name, CORTEX) for name in (OURS, "banksy", "smoothed_pca", "raw_pca")}
    return [
        Question("Expression, four sets of cells", "explained deviance (d2)", averaged(results, "B", CELLS), True),
        Question("Mean of a gene in 7 spots", "squared error (counts: 1), lower is better", relative, False),
        Question("Differing genes found, 10 to 30 spots", "share, at the same false discovery rate", found, True),
        Question("Layers of four cortex sections", "adjusted Rand index of domains", domains, True),
    ]


def main(arguments: list[str] | None = None) -> None:
    options = folders(__doc__, arguments)
    store = Store(options.results)
    results = {case: store.load(case)["results"] for case in CASES}
    shown = questions(results, options.results)
    options.pages.mkdir(parents=True, exist_ok=True)
    every = [*shown, *further(results, options.results)]
    (options.pages / "comparison.md").write_text(page(results, options.results, every), encoding="utf-8")
    with matplotlib.rc_context({"svg.hashsalt": "overview"}):
        plot(every).savefig(options.pages / "comparison.svg", metadata={"Date": None, "Creator": None})
    if options.pages == PAGES:
        for path in WITH_TABLE:
            text = with_table(path.read_text(encoding="utf-8"), short(shown, options.results))
            path.write_text(text, encoding="utf-8")
    print(f"written to {options.pages}: comparison.md, comparison.svg")


if __name__ == "__main__":
    main()
