#!/usr/bin/env python3
"""What the histology image adds: spots of which every gene is hidden, alone and in patches, and sections never seen.

    images.py [--sets SET ...] [--tasks TASK ...] [--seeds SEED ...]

Results are kept as those of ``compare.py`` are, in RESULTS/images, and rendered into docs/benchmarks/images.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import anndata
import numpy as np
from compare import DIRTY, MODEL, RESULTS, ROOT, Case, Code, Record, Store, is_current
from imaged import LIBRARY, SETS, sections
from report import spread, table
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

from lgdist_scvi import LGDiST, pp

PAGE = ROOT / "docs" / "benchmarks" / "images.md"
TASKS = {
    "spots": "Hidden spots",
    "patches": "Hidden patches",
    "unseen": "Sections never seen",
}
METHODS = {
    "image": "with the image",
    "off": "the same model, image withheld",
    "none": "a model trained without images",
    "ridge": "ridge regression from the same embedding",
}
N_FOLDS = 5
PATCH_SPOTS = 13  # a spot and what lies within two steps of a square grid
PENALTIES = np.geomspace(1, 1e5, 11)


def hidden_spots(adata: anndata.AnnData, task: str, seed: int) -> Iterator[np.ndarray]:
    """True where a spot is hidden, one mask for each fold."""
    rng = np.random.default_rng(seed)
    libraries = adata.obs[LIBRARY].to_numpy()
    names = list(dict.fromkeys(libraries))
    if task == "unseen":
        yield from (libraries == name for name in names)
        return
    fold = np.empty(adata.n_obs, dtype=int)
    for name in names:
        rows = np.flatnonzero(libraries == name)
        if task == "spots":
            fold[rows] = rng.permutation(len(rows)) % N_FOLDS
            continue
        # Spots go in patches to the folds: the nearest of those that are left around one of them.
        positions, left, patch = adata.obsm["spatial"][rows], np.ones(len(rows), dtype=bool), rng.integers(N_FOLDS)
        while left.any():
            distance = np.linalg.norm(positions - positions[rng.choice(np.flatnonzero(left))], axis=1)
            near = np.argsort(np.where(left, distance, np.inf))[: min(PATCH_SPOTS, left.sum())]
            fold[rows[near]], left[near] = patch % N_FOLDS, False
            patch += 1
    yield from (fold == i for i in range(N_FOLDS))


def panel(adata: anndata.AnnData, hidden: np.ndarray) -> anndata.AnnData:
    """Target and context genes, chosen without the hidden spots, and which entries are observed."""
    adata = adata.copy()
    adata.layers["observed"] = np.repeat(~hidden[:, None], adata.n_vars, axis=1)
    return pp.select_genes(
        adata,
        n_context=min(896, adata.n_vars - 128),
        min_fraction=0.05,
        library_key=LIBRARY,
        observed_layer="observed",
    )


def predictions(adata: anndata.AnnData, hidden: np.ndarray, seed: int, task: str) -> Iterator[tuple[str, np.ndarray]]:
    """Rates of the hidden spots by every method."""
    rows = np.flatnonzero(hidden)
    setup = {
        "library_key": LIBRARY,
        "observed_layer": "observed",
        "size_factor_key": "total_counts",
        "target_genes_key": "target_gene",
    }
    for image_key in ("X_image", None) if task != "unseen" else ("X_image",):
        # Of a section never seen nothing is there in training, not even an empty row.
        seen = adata if task != "unseen" else adata[~hidden].copy()
        LGDiST.setup_anndata(seen, image_key=image_key, **setup)
        model = LGDiST(seen, seed=seed)
        model.train(enable_progress_bar=False)
        options = {"scale": "rate", "return_numpy": True, "silent": True}
        if task == "unseen":
            yield "image", model.predict_expression(adata[hidden].copy(), scale="rate", silent=True).to_numpy()
        elif image_key is None:
            yield "none", model.get_completed_expression(indices=rows, **options)
        else:
            yield "image", model.get_completed_expression(indices=rows, **options)
            yield "off", model.get_completed_expression(indices=rows, use_image=False, **options)
    yield "ridge", ridge(adata, hidden)


def log_values(adata: anndata.AnnData) -> np.ndarray:
    """log1p of counts per 10,000."""
    depth = adata.obs["depth"].to_numpy()[:, None]
    return np.log1p(adata.X.toarray() / depth * 1e4)


def ridge(adata: anndata.AnnData, hidden: np.ndarray) -> np.ndarray:
    """Rates from log values, linear in the embedding; the penalty is chosen on whole sections left out."""
    x, y = adata.obsm["X_image"], log_values(adata)
    centre, scale = x[~hidden].mean(axis=0), x[~hidden].std(axis=0) + 1e-6
    x = (x - centre) / scale
    libraries = adata.obs[LIBRARY].to_numpy()[~hidden]
    folds = GroupKFold(len(set(libraries))).split(x[~hidden], groups=libraries)
    model = RidgeCV(PENALTIES, cv=list(folds)).fit(x[~hidden], y[~hidden])
    return np.expm1(np.maximum(model.predict(x[hidden]), 0)) / 1e4


def score(rate: np.ndarray, adata: anndata.AnnData, hidden: np.ndarray) -> Record:
    """Deviance of the hidden counts at their depth, and correlation over the spots of a section, of the target genes."""
    targets = adata.var["target_gene"].to_numpy()
    counts, depth = adata.X.toarray()[:, targets], adata.obs["depth"].to_numpy()[:, None]
    mean = counts[~hidden].sum(axis=0) / depth[~hidden].sum()
    truth, expected = counts[hidden], np.maximum(rate[:, targets] * depth[hidden], 1e-9)
    left, total = deviance(truth, expected), deviance(truth, mean * depth[hidden])
    predicted, measured = np.log1p(rate[:, targets] * 1e4), log_values(adata)[hidden][:, targets]
    libraries = adata.obs[LIBRARY].to_numpy()[hidden]
    each = [correlation(predicted[libraries == name], measured[libraries == name]) for name in set(libraries)]
    return {"deviance": left / truth.size, "d2": 1 - left / total, "pearson": fmean(each), "n_spots": int(hidden.sum())}


def deviance(counts: np.ndarray, expected: np.ndarray) -> float:
    """Poisson deviance."""
    logs = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / expected), 0)
    return float(2 * (logs - counts + expected).sum())


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean Pearson correlation of the genes that vary."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    norm = np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))
    varies = (other**2).sum(axis=0) > 0
    return float(((one * other).sum(axis=0) / np.maximum(norm, 1e-12))[varies].mean())


INTRODUCTION = """\
# What the image adds

Spots of which *all* genes are hidden, predicted with and without the histology image: from their neighbours and from what
the image shows. Two sets with the original photographs, embedded by {class}`~lgdist_scvi.pp.StainDescriptor`, the default,
which knows no weights; defaults throughout. The target genes are chosen without the hidden spots, and scored are

- `d2`, the share of the Poisson deviance of the gene means that is explained, of all counts, zeros included, at the depth that
  the spot really has; and the *error*, what is left of the deviance, with the image as a share of that without;
- `pearson`, over the spots of a section, mean over genes, of log1p(counts per 10,000).

Means over the folds, with the lowest and the highest in brackets. This page is written by `make benchmark-images`.
"""
NOTES = {
    "spots": "A fifth of the spots is hidden, one by one, five times. Their neighbours are mostly there.",
    "patches": f"A fifth of the spots is hidden in patches of {PATCH_SPOTS}, five times: what is inside has no neighbour.",
    "unseen": (
        "One section is left out of the training altogether, and predicted from its image alone "
        "({meth}`~lgdist_scvi.LGDiST.predict_expression`). The gene mean has a correlation of 0. The ridge regression has "
        "the same embedding, and its penalty is chosen by leaving out sections of the training."
    ),
}


def page(store: Store) -> str:
    """Scores by task and set."""
    lines = [INTRODUCTION]
    for task, title in TASKS.items():
        lines += [f"## {title}", "", NOTES[task], ""]
        rows = []
        for name, (what, _) in SETS.items():
            found: dict[str, list[Record]] = {}
            for seed in range(3):
                for key, record in sorted(store.load(Case(name, task, seed))["results"].items()):
                    found.setdefault(key.split()[0], []).append(record)
            for method in (method for method in METHODS if method in found):
                records = found[method]
                ratio = ""
                if method == "image" and "none" in found:
                    pairs = zip(records, found["none"], strict=True)
                    ratio = spread([one["deviance"] / other["deviance"] for one, other in pairs], ".3f")
                d2 = "" if method == "ridge" else spread([record["d2"] for record in records], ".3f")
                rows.append([what, METHODS[method], d2, ratio, spread([r["pearson"] for r in records], ".3f")])
        lines += [*table(["set", "prediction", "`d2`", "error, with / without image", "`pearson`"], rows), ""]
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of data/")
    parser.add_argument(f"--{DIRTY}", action="store_true", help="run uncommitted code; such a result is never reused")
    options = parser.parse_args()
    code = Code(dirty=options.dirty, measured={"tree": MODEL})
    if code.changed and not options.dirty:
        sys.exit(f"the model has changes that are not committed: commit them, or give --{DIRTY}")
    store = Store(RESULTS / "images")
    for name in options.sets:
        for task in options.tasks:
            for case in (Case(name, task, seed) for seed in options.seeds):
                whole = sections(name, options.shared.resolve() / "data")
                kept = store.load(case)["results"]
                for fold, hidden in enumerate(hidden_spots(whole, task, case.seed)):
                    if is_current(kept.get(f"ridge {fold}"), code.key, retry=False):
                        continue
                    adata = panel(whole, hidden)
                    # What a spot really has, for the scores only; hidden spots enter the model with the median.
                    adata.obs["depth"] = np.asarray(whole.X.sum(axis=1)).ravel()
                    for method, rate in predictions(adata, hidden, case.seed, task):
                        record = score(rate, adata, hidden)
                        store.merge(case, {}, {f"{method} {fold}": {**record, **code.key, "commit": code.commit}})
                        print(f"{case} fold {fold} {method}: {record}", flush=True)
    PAGE.write_text(page(store), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
