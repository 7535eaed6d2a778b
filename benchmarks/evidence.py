#!/usr/bin/env python3
"""What completed expression says in sums and in correlations, beside the molecules that it was not given.

    evidence.py [--sets SET ...] [--seeds SEED ...] [--render]

The model is given half of the molecules of a section. Totals are compared with those that it was given, correlations between
genes with those of the other half. Results go into benchmarks/results/evidence, and docs/benchmarks/evidence.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import sys

import anndata
import numpy as np
from compare import RESULTS, ROOT, Code
from numpy.typing import NDArray
from report import table
from scoring import Record
from sets import DENSE, QUICK
from sklearn.cluster import KMeans

from lgdist_scvi import LGDiST

FOLDER = RESULTS / "evidence"
PAGE = ROOT / "docs" / "benchmarks" / "evidence.md"
FRACTION = 0.5
CLASSES = (0.03, 0.1, 0.3, 1.0, 3.0, np.inf)
"""Bounds of the classes of abundance, in counts per spot."""
N_REGIONS = 8
LEAST_COUNTS = 100
DETERMINED = 4.0
"""Standard errors by which the true variance of a gene must differ from zero."""

Floats = NDArray[np.floating]

INTRODUCTION = f"""\
# Totals and correlations

Written by `benchmarks/evidence.py`. The model is given half of the molecules of a section, drawn one by one, with its defaults.

## Totals

The completed total of genes over the measured one, by their mean count per spot (the lower end of the class), where there are
{LEAST_COUNTS} counts and more: over all spots, and the lowest and the highest of {N_REGIONS} compact regions. *Kept* is `keep_observed=True`.
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


def covariance(one: Floats, other: Floats) -> Floats:
    return (one - one.mean(axis=0)).T @ (other - other.mean(axis=0)) / (len(one) - 1)


def normalised(covariances: Floats, variance: Floats) -> Floats:
    """Correlations; NaN where a variance is not above zero."""
    deviation = np.sqrt(np.where(variance > 0, variance, np.nan))
    return np.clip(covariances / np.outer(deviation, deviation), -1, 1)


def correlations(model: LGDiST, train: anndata.AnnData, truth: Record, seed: int) -> Record:
    """Slope and error of estimates of the correlation between genes."""
    genes = train.var["eval"].to_numpy()
    first = np.random.default_rng(seed).binomial(truth["counts"].astype(np.int64), 0.5)
    quarters = [part / (truth["lib"][:, None] / 2) for part in (first, truth["counts"] - first)]
    given, depth = train.X[:, genes].toarray().astype(float), train.obs["lib"].to_numpy(dtype=float)[:, None]
    # The two halves have independent noise.
    halves = [given / depth, truth["counts"] / truth["lib"][:, None]]
    products = (halves[0] - halves[0].mean(axis=0)) * (halves[1] - halves[1].mean(axis=0))
    variance = products.mean(axis=0)
    known = variance > DETERMINED * products.std(axis=0) / np.sqrt(len(products))
    deviation = np.sqrt(variance[known])
    pairs = np.triu_indices(known.sum(), 1)

    def pairs_of(matrix: Floats) -> Floats:
        return np.asarray(matrix, dtype=float)[np.ix_(known, known)][pairs]

    one, other = (
        covariance(part[:, known], part[:, known])[pairs] / np.outer(deviation, deviation)[pairs] for part in quarters
    )
    measured = covariance(given / depth, given / depth)
    names = list(train.var_names[genes])
    estimate, std = model.get_gene_correlation(gene_list=names, return_std=True, silent=True)
    completed = model.get_completed_expression(gene_list=names, scale="rate", return_numpy=True, silent=True)
    estimates = {
        "get_gene_correlation": estimate,
        "completed values": np.corrcoef(completed.T),
        "counts, noise subtracted": normalised(measured, np.diag(measured) - (given / depth**2).mean(axis=0)),
        "counts": np.corrcoef((given / depth).T),
    }
    found: Record = {"genes": int(known.sum())}
    for name, matrix in estimates.items():
        values = pairs_of(matrix)
        there = np.isfinite(values)
        slope = (values * (one + other) / 2)[there].mean() / (one * other)[there].mean()
        error = np.sqrt(max(((values - one) * (values - other))[there].mean(), 0))
        found[name] = {"slope": float(slope), "error": float(error)}
    found["standard error"] = float(np.sqrt(np.square(pairs_of(std)).mean()))
    return found


def page() -> str:
    """The tables of what was measured."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    head = ["section", "seed", "", *(f"{low:g}" for low in CLASSES[:-1])]
    rows = []
    for record in records:
        for name in ("completed", "kept"):
            for where in ("section", "region"):
                values = [record["totals"].get(f"{name} {where} {low}") for low in CLASSES[:-1]]
                shown = [" to ".join(f"{end:.3f}" for end in dict.fromkeys(value)) if value else "" for value in values]
                rows.append([DENSE[record["set"]].title, str(record["seed"]), f"{name}, {where}", *shown])
    lines = [INTRODUCTION, *table(head, rows), "", CORRELATIONS]
    methods = ("get_gene_correlation", "completed values", "counts, noise subtracted", "counts")
    head = ["section", "seed", "genes", *(f"{method}: slope, error" for method in methods), "standard error"]
    rows = []
    for record in records:
        found = record["correlations"]
        shown = [f"{found[method]['slope']:.2f}, {found[method]['error']:.3f}" for method in methods]
        title = DENSE[record["set"]].title
        rows.append([title, str(record["seed"]), str(found["genes"]), *shown, f"{found['standard error']:.3f}"])
    commits = sorted({record["commit"] for record in records})
    return "\n".join(
        [*lines, *table(head, rows), "", f"Commits: {', '.join(f'`{commit}`' for commit in commits)}.", ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=DENSE, default=list(QUICK), metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--shared", default=ROOT.parent / "shared", help="folder of bench/ and data/")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if not options.render:
        sys.path.insert(0, f"{options.shared}/bench")
        import completion

        code = Code(dirty=False)
        if code.changed:
            sys.exit("the model has changes that are not committed: commit them")
        for name in options.sets:
            data = completion.load(",".join(f"{options.shared}/data/{file}" for file in DENSE[name].files))
            for seed in options.seeds:
                train, truth = completion.split_thinned(data, seed, FRACTION)
                LGDiST.setup_anndata(train, library_key="slide", size_factor_key="lib", target_genes_key="eval")
                model = LGDiST(train, seed=seed)
                model.train(enable_progress_bar=False)
                record = {"set": name, "seed": seed, "commit": code.commit, "totals": totals(model, train, seed)}
                record["correlations"] = correlations(model, train, truth, seed)
                (FOLDER / f"{name}_seed{seed}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(name, seed, record["correlations"], flush=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
