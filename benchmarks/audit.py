#!/usr/bin/env python3
"""Audit completed values of several methods with ``lgdist_scvi.tl.audit``, and render the answers.

    audit.py [--sets SET ...] [--methods METHOD ...] [--seeds SEED ...] [--render]

Every method is given half of the molecules of the panel of a section, with decoy genes. Its answers go to
RESULTS/SET_audit_seedSEED.json as soon as they are there, and are good for as long as what they were made from stays the same:
the data, the harness, the audit, the recipe in this file, and for LGDiST the code. docs/benchmarks/audit.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
from compare import DIRTY, MODEL, NOT_INSTALLED, RESULTS, Code, Store, is_current, parse_running, recipe_key, started
from report import PAGES, spread, table
from scipy import sparse
from scoring import INSTALL, Harness, Record
from sets import OURS, SETS, Case

from lgdist_scvi import LGDiST
from lgdist_scvi.tl import audit, prepare_audit

# recipe begins: with a change from here on, results are made anew
N_DECOYS = 50
KEPT = f"{OURS}_kept"
STD = "std"
# Those that the harness knows, by their names there; the first needs no package of its own.
PEERS = {"knn6": "classical", "magic": "magic", "scvi": "scvi", "resolvi": "resolvi"}


def prepared(name: str, seed: int, completion: ModuleType, paths: Iterable[Path]) -> anndata.AnnData:
    """Panel of a set with decoys, half of whose molecules are held out, as the harness would hand it out to complete all genes."""
    data = completion.load(",".join(map(str, paths)), **SETS[name].options)
    data.obs["lib"] = np.asarray(data.X.sum(axis=1)).ravel()
    panel = data[:, data.var["panel"]].copy()
    given = prepare_audit(panel, n_decoys=N_DECOYS, size_factor_key="lib", seed=seed)
    given.obs["lib"], given.var["eval"] = given.obs["depth"], True
    given.layers["missing"] = sparse.csr_matrix(given.shape, dtype=np.uint8)
    given.layers["lognorm"] = completion.lognorm(
        given.X.toarray(), given.obs["lib"].to_numpy(), given.uns["target_sum"]
    )
    given.uns |= {"protocol": "B", "seed": seed}
    return given


def by_us(given: anndata.AnnData) -> dict[str, anndata.AnnData]:
    """Completed by LGDiST with its defaults, and with detected entries as measured."""
    LGDiST.setup_anndata(given, layer="counts", library_key="slide", size_factor_key="lib")
    model = LGDiST(given, seed=int(given.uns["seed"]))
    model.train(enable_progress_bar=False)
    expected, std = model.get_completed_expression(scale="rate", return_std=True, return_numpy=True, silent=True)
    kept = model.get_completed_expression(scale="rate", keep_observed=True, return_numpy=True, silent=True)
    return {
        OURS: anndata.AnnData(expected, layers={STD: std}, uns={"space": "rate"}),
        KEPT: anndata.AnnData(kept, uns={"space": "rate"}),
    }


def by_peer(method: str, given: anndata.AnnData, harness: Harness) -> anndata.AnnData | str:
    """Completed by the harness, or the reason why not."""
    files = [harness.work / f"audit_{method}_{end}.h5ad" for end in ("input", "output")]
    files[1].unlink(missing_ok=True)
    given.write_h5ad(files[0])
    command = [harness.python(method), str(harness.bench / "methods.py"), method, *map(str, files)]
    threads = {f"{kind}_NUM_THREADS": str(harness.threads) for kind in ("OMP", "MKL", "NUMBA")}
    status, message = harness.call(command, {**harness.environment, **threads}, harness.timeout)
    return message if status else anndata.read_h5ad(files[1])


def completed(method: str, given: anndata.AnnData, harness: Harness) -> dict[str, anndata.AnnData] | str:
    """Completed values by the row of the table that they belong to, or the reason why there are none."""
    visible = given.copy()
    for key in ("held_out", "counts") if method in PEERS else ("held_out",):
        del visible.layers[key]
    if method == OURS:
        return by_us(visible)
    if method in PEERS:
        made = by_peer(method, visible, harness)
        return made if isinstance(made, str) else {method: made}
    rate = given.X.toarray() / np.maximum(given.obs["lib"].to_numpy(), 1)[:, None]
    return {method: anndata.AnnData(rate, uns={"space": "rate"})}


def answers(given: anndata.AnnData, made: anndata.AnnData, seed: int) -> list[Record]:
    """The summary of an audit; figures that are missing are None."""
    audited = given.copy()
    values = made.X.toarray() if sparse.issparse(made.X) else np.asarray(made.X)
    # MAGIC goes a little below zero.
    audited.layers["completed"] = np.maximum(values, 0)
    if STD in made.layers:
        audited.layers[STD] = made.layers[STD]
    scale = "rate" if made.uns["space"] == "rate" else "log1p"
    found = audit(audited, "completed", scale=scale, std_layer=STD if STD in made.layers else None, seed=seed).summary
    return json.loads(found.drop(columns="ideal").to_json(orient="records", double_precision=6))


# recipe ends: what follows collects and renders results
METHODS = ("raw", *PEERS, OURS)
# Regions are made from the positions of one section, and molecules are held out here.
SINGLE = tuple(name for name, of in SETS.items() if len(of.files) == 1 and "--frac" not in of.arguments)
AUDITED = ("her2_c4", "mob1", "crc16", "cortex_151674")
LABELS = {
    "raw": "raw counts",
    "knn6": "mean of 7 spots",
    "magic": "MAGIC",
    "scvi": "scVI",
    "resolvi": "ResolVI",
    OURS: "LGDiST",
    KEPT: "LGDiST, `keep_observed=True`",
}
COLUMNS = {
    "totals": "totals, by abundance",
    "over-imputation": "over-imputation, %",
    "deviance explained": "deviance explained",
    "contrast": "contrast",
    "null tests": "null tests, %",
    "correlations": "correlations",
    "coverage": "coverage of 50, 80, 95%",
}
IN_PERCENT = ("over-imputation", "null tests", "coverage")

INTRODUCTION = """\
# The audit of six methods

Written by `benchmarks/audit.py`: {func}`lgdist_scvi.tl.audit` asked of several methods what its page says, on the same input. Each was given
half of the molecules of the 1,024 genes with the strongest spatial pattern, and of 50 decoys that have none. **Bold** is what the audit
calls not as it should be; empty is what could not be asked. Where there are several seeds, a figure is the mean over
them, with the lowest and the highest in brackets; bold if any of them is not fine.

- *Totals*: completed over given molecules, from the lowest to the highest class of abundance. 1 is right.
- *Over-imputation*: share of the absences of a gene from a region for which the completed values predict 3 molecules or more.
- *Deviance explained*: of the held-out molecules, beyond gene means; higher is better.
- *Contrast*: slope of log ratios between regions on those of the held-out molecules. 1 is right.
- *Null tests*: share of p < 0.05 in Welch's test of a decoy between two halves of a region. 5% is right.
- *Correlations*: slope of correlations between genes on those without noise. 1 is right.
- *Coverage*: of intervals of held-out counts, where the method has a standard deviation.

Raw counts are divided by the depth. The mean of 7 spots is that of a spot and its 6 nearest ones, counts over depths. MAGIC gets log
values. scVI (negative binomial, 200 epochs, 25 samples) and ResolVI (50 epochs, 10 samples) give their normalised expression, and LGDiST
its expected expression, each with the other options at their defaults.
"""
READING = """\
Raw counts alone pass the null test everywhere; values of `keep_observed=True`, which keep much of the noise of single spots, come next. In
smoothed values the errors of neighbouring spots correlate, and a test that takes them for independent finds too much, in ours as in
others. Use {meth}`~lgdist_scvi.LGDiST.differential_expression`, which tests counts. For correlations there is
{meth}`~lgdist_scvi.LGDiST.get_gene_correlation`, for means of regions {meth}`~lgdist_scvi.LGDiST.get_region_expression`, and whether a gene is
absent says {meth}`~lgdist_scvi.LGDiST.detect_expression`.
"""


def measure(options: argparse.Namespace, harness: Harness, store: Store) -> None:
    """Run what is not kept yet, and keep it."""
    code = Code(dirty=options.dirty, measured={"audit": f"{MODEL}/tl", "tree": MODEL})
    if code.changed and not options.dirty:
        sys.exit(f"{MODEL} has changes that are not committed: commit them, or give --{DIRTY}")
    commit = DIRTY if code.key["tree"] == DIRTY else code.commit
    sys.path.insert(0, str(harness.bench))
    import completion

    recipe = recipe_key(Path(__file__))
    todo: dict[Case, list[tuple[str, Record]]] = {}
    for seed in options.seeds:
        for name in options.sets:
            case = Case(name, "audit", seed)
            kept, common = store.load(case)["results"], {"data": harness.data_key(name), "harness": harness.key}
            for method in options.methods:
                # The other methods do not change with our model.
                own = code.key if method == OURS or commit == DIRTY else {"audit": code.key["audit"]}
                key = {**common, "recipe": recipe, **own}
                if not is_current(kept.get(method), key, retry=options.retry):
                    todo.setdefault(case, []).append((method, key))
    print(f"{sum(map(len, todo.values()))} runs to do; results in {store.folder}", flush=True)
    needed = {PEERS[method] for jobs in todo.values() for method, _ in jobs if method in PEERS}
    reasons = {package: why for package in needed if (why := harness.why_not(package))}
    for package in reasons:
        print(f"{harness.python(package)} cannot run {package}: {INSTALL[package]}", flush=True)
    for case, jobs in todo.items():
        given = prepared(case.name, case.seed, completion, harness.paths(case.name))
        info = {"spots": given.n_obs, "genes": int((~given.var["decoy"]).sum()), "decoys": N_DECOYS}
        for method, key in jobs:
            start = time.perf_counter()
            why = reasons.get(PEERS.get(method, ""))
            made = f"{NOT_INSTALLED}{why}" if why else completed(method, given, harness)
            about = {**key, "commit": commit, "seconds": round(time.perf_counter() - start)}
            if isinstance(made, str):
                records = {method: {**about, "error": made}}
            else:
                records = {row: {**about, "answers": answers(given, values, case.seed)} for row, values in made.items()}
            store.merge(case, info, records)
            print(f"{case} {method}: {records[method].get('error', 'audited')}, {about['seconds']} s", flush=True)


def cell(question: str, found: list[list[Record]]) -> str:
    """What was answered to a question, one list for each seed."""
    asked = [[one for one in rows if one["question"] == question and one["value"] is not None] for rows in found]
    if question == "null tests":  # the test of the counts is there for comparison
        asked = [[one for one in rows if one["fine"] is not None] for rows in asked]
    asked = [rows for rows in asked if rows]
    if not asked:
        return ""
    scale, form = (100, ".0f") if question in IN_PERCENT else (1, ".2f")
    values = [[scale * one["value"] for one in rows] for rows in asked]
    if question == "totals":
        text = f"{min(map(min, values)):.2f} to {max(map(max, values)):.2f}"
    else:
        text = ", ".join(spread(of, form) for of in zip(*values, strict=True))
    return text if all(one["fine"] for rows in asked for one in rows) else f"**{text}**"


def page(store: Store) -> str:
    """The answers, one table for each set."""
    lines, used = [INTRODUCTION], []
    for name in SETS:
        kept = [store.load(Case(name, "audit", seed)) for seed in range(3)]
        kept = [one for one in kept if one["results"]]
        if not kept:
            continue
        rows, missing = [], []
        for row, label in LABELS.items():
            records = [one["results"][row] for one in kept if row in one["results"]]
            found = [record["answers"] for record in records if "answers" in record]
            used += [record for record in records if "answers" in record]
            missing += [f"{label}: {record['error']}" for record in records if "error" in record]
            if found:
                rows.append([label, str(len(found)), *(cell(question, found) for question in COLUMNS)])
        title, spots = SETS[name].title, kept[0]["info"]["spots"]
        lines += [f"## {title[0].upper()}{title[1:]}, {spots:,} spots", *table(["", "seeds", *COLUMNS.values()], rows)]
        lines += [f"Not audited: {'; '.join(dict.fromkeys(missing))}.", ""] * bool(missing)
    commits = sorted({record["commit"] for record in used})
    lines += ["## Reading it", "", READING, f"Commits: {', '.join(f'`{commit}`' for commit in commits)}."]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SINGLE, default=AUDITED, metavar="SET")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, choices=(0, 1, 2), default=(0, 1, 2), metavar="SEED")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    parser.add_argument("--out", type=Path, default=RESULTS / "audit", metavar="RESULTS", help="where to keep results")
    parser.add_argument("--pages", type=Path, default=PAGES, help="where to write (default: docs/benchmarks)")
    parser.set_defaults(jobs=1)
    return parse_running(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore")
    options = parse(arguments)
    store = Store(options.out.resolve())
    if not options.render:
        with started(options) as harness:
            measure(options, harness, store)
    (options.pages / "audit.md").write_text(page(store), encoding="utf-8")
    print(f"written to {options.pages / 'audit.md'}")


if __name__ == "__main__":
    main()
