#!/usr/bin/env python3
"""How long training and completion take, how much memory, and how both grow; beside other methods, in the same run.

    speed.py [--tasks TASK ...] [--rounds ROUNDS]

sampling    completion of one minibatch, and one training step: the defaults and the published configuration in turn
section     from counts to a completed matrix of one section, and peak memory: LGDiST, scVI, MAGIC, SpaCKLE
spots       LGDiST on 1,000, 10,000 and 100,000 simulated spots of 1,000 genes, one pass of training in each phase
genes       LGDiST on 2,000 simulated spots of 1,000, 5,000 and 18,000 genes, the same
large       500,000 simulated spots of 1,000 genes, written to disk
cells       from files: simulated cells of 600 genes, of which 300 are selected, to a file of completed cells
bins        from files: simulated bins of 2,000 genes and 50 molecules, of which 1,000 are selected, to a file
domains     `tl.domains` on 3,000 and on 100,000 simulated niches

Results go to RESULTS/speed, one file for each task, and docs/benchmarks/speed.md is written from those that are there. Times
on a shared machine tell little by themselves: what counts are ratios of medians within one run, and slopes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
import pandas as pd
from compare import RESULTS, ROOT, Code
from report import table
from scipy import sparse

FOLDER = RESULTS / "speed"
PAGE = ROOT / "docs" / "benchmarks" / "speed.md"
SECTION = "dlpfc_visium_151674.h5ad"
SPOTS, GENES = (1_000, 10_000, 100_000), (1_000, 5_000, 18_000)
LARGE = 500_000
FILES = (4_000, 20_000, 100_000)
NICHES = (3_000, 100_000)
# SpaCKLE trains for ten minutes whatever the section, so it runs once.
METHODS = {"lgdist": "LGDiST", "scvi": "scVI", "magic": "MAGIC", "spackle": "SpaCKLE"}
ONCE = ("spackle",)
PARTS = ("setup", "train", "complete")

Record = dict[str, Any]


def simulated(n_spots: int, n_genes: int, detected: float = 0.05) -> anndata.AnnData:
    """Spots on a square grid in ten domains with profiles of their own, of which a share of the entries is not zero."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(n_spots**0.5))
    place = np.stack(np.divmod(np.arange(n_spots), side), axis=1)
    domain = (place[:, 0] * 10 // side).astype(int)
    profile = (0.05 + rng.gamma(1, size=n_genes)) * rng.gamma(2, 0.5, size=(10, n_genes))
    # Scaled until the expected share of entries that are not zero is what is wanted.
    scale = 1.0
    for _ in range(60):
        scale *= detected / max(1e-9, (1 - np.exp(-scale * profile)).mean())
    blocks = []
    for start in range(0, n_spots, 5000):
        depth = rng.lognormal(0, 0.3, size=(len(domain[start : start + 5000]), 1))
        blocks.append(
            sparse.csr_matrix(rng.poisson(scale * profile[domain[start : start + 5000]] * depth), dtype=np.float32)
        )
    counts = sparse.vstack(blocks, format="csr")
    kept = np.asarray(counts.sum(axis=0)).ravel() > 0
    adata = anndata.AnnData(
        counts[:, kept],
        obs=pd.DataFrame(index=[f"spot_{i}" for i in range(n_spots)]),
        var=pd.DataFrame(index=[f"gene_{i}" for i in np.flatnonzero(kept)]),
        obsm={"spatial": place.astype(float)},
    )
    return adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()


# What runs in a process of its own, so that its memory is its own; each returns seconds and what else it has measured.


def run_lgdist(path: Path) -> Record:
    from lgdist_scvi import LGDiST

    adata = anndata.read_h5ad(path)
    LGDiST.setup_anndata(adata, size_factor_key="lib", target_genes_key="eval")
    model, start = LGDiST(adata), time.perf_counter()
    model.train(enable_progress_bar=False)
    trained = time.perf_counter()
    model.get_completed_expression(silent=True)
    n_steps = sum(len(losses["train_loss"]) for losses in model.history.values()) * (adata.n_obs // 128)
    return {"train": trained - start, "complete": time.perf_counter() - trained, "step": (trained - start) / n_steps}


def run_scvi(path: Path) -> Record:
    import scvi

    adata = anndata.read_h5ad(path)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata)
    model, start = scvi.model.SCVI(adata), time.perf_counter()
    model.train(enable_progress_bar=False)
    trained = time.perf_counter()
    model.get_normalized_expression()
    n_steps = len(model.history["elbo_train"]) * -(-int(0.9 * adata.n_obs) // 128)
    return {"train": trained - start, "complete": time.perf_counter() - trained, "step": (trained - start) / n_steps}


def run_magic(path: Path) -> Record:
    from magic import MAGIC

    adata = anndata.read_h5ad(path)
    start = time.perf_counter()
    values = np.log1p(adata.X.toarray() / adata.obs["lib"].to_numpy()[:, None] * 1e4)
    MAGIC(random_state=0, verbose=0).fit_transform(values, genes="all_genes")
    return {"complete": time.perf_counter() - start}


def peak_gb() -> float:
    """Largest memory of this process so far."""
    import resource  # there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run_growth(n_spots: int, n_genes: int, folder: Path) -> Record:
    """One pass of training and a completion that is written to disk."""
    from lgdist_scvi import LGDiST

    adata = simulated(n_spots, n_genes)
    before, times = peak_gb(), [time.perf_counter()]
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata)
    times.append(time.perf_counter())
    model.train(autoencoder_max_epochs=1, enable_progress_bar=False)
    times.append(time.perf_counter())
    trained = peak_gb()
    model.write_completed(folder / "completed.h5ad", silent=True)
    times.append(time.perf_counter())
    setup, train, complete = np.diff(times).tolist()
    size = (folder / "completed.h5ad").stat().st_size / 1e9
    found = {"setup": setup, "train": train, "complete": complete, "before_gb": before, "trained_gb": trained}
    return {**found, "n_spots": adata.n_obs, "n_genes": adata.n_vars, "nonzero": adata.X.nnz, "file_gb": size}


def write_simulated(n_spots: int, n_genes: int, detected: float, path: Path) -> Record:
    """A file of simulated spots, made in a process whose memory does not count."""
    adata = simulated(n_spots, n_genes, detected)
    adata.write_h5ad(path)
    return {"nonzero": adata.X.nnz, "molecules": float(adata.X.sum() / adata.n_obs)}


def run_file(n_genes: int, path: Path) -> Record:
    """From a file to a file: selection of genes on disk, training and completion in blocks, with defaults."""
    from lgdist_scvi import LGDiST, pp

    before, times = peak_gb(), [time.perf_counter()]
    adata = pp.select_genes(
        anndata.read_h5ad(path, backed="r"), n_target=n_genes // 4, n_context=n_genes - n_genes // 4, min_fraction=0
    )
    times.append(time.perf_counter())
    selected = peak_gb()
    LGDiST.setup_anndata(adata, size_factor_key="total_counts", target_genes_key="target_gene")
    model = LGDiST(adata)
    times.append(time.perf_counter())
    model.train(enable_progress_bar=False)
    times.append(time.perf_counter())
    trained = peak_gb()
    model.write_completed(path.with_name("completed.h5ad"), silent=True)
    times.append(time.perf_counter())
    select, setup, train, complete = np.diff(times).tolist()
    found = {"select": select, "setup": setup, "train": train, "complete": complete, "before_gb": before}
    found["passes"] = len(model.history["autoencoder"]["train_loss"])
    return {**found, "selected_gb": selected, "trained_gb": trained, "n_spots": adata.n_obs, "n_genes": adata.n_vars}


def run_domains(n_spots: int) -> Record:
    """Seven domains of niches of 15 components: their number given, and suggested."""
    from lgdist_scvi import tl

    random = np.random.default_rng(0)
    niches = random.normal(size=(n_spots, 15)) + 3 * random.normal(size=(7, 15))[random.integers(7, size=n_spots)]
    adata = anndata.AnnData(obsm={"X_lgdist_niche": niches})
    tl.domains(adata[:100].copy(), 2)  # imports
    before, times = peak_gb(), [time.perf_counter()]
    for number in (7, None):
        tl.domains(adata, number)
        times.append(time.perf_counter())
    given, suggested = np.diff(times).tolist()
    return {"n_spots": n_spots, "given": given, "suggested": suggested, "before_gb": before}


CHILDREN: dict[str, Callable[..., Record]] = {"lgdist": run_lgdist, "scvi": run_scvi, "magic": run_magic}


def child(arguments: list[str]) -> None:
    """What the process does that is asked for one method."""
    name, *rest = arguments
    with tempfile.TemporaryDirectory() as folder:
        if name == "growth":
            found = run_growth(int(rest[0]), int(rest[1]), Path(folder))
        elif name == "simulate":
            found = write_simulated(int(rest[0]), int(rest[1]), float(rest[2]), Path(rest[3]))
        elif name == "domains":
            found = run_domains(int(rest[0]))
        elif name == "file":
            found = run_file(int(rest[0]), Path(rest[1]))
        else:
            found = CHILDREN[name](Path(rest[0]))
    print("RESULT " + json.dumps(found), flush=True)


def measured(command: list[str]) -> Record:
    """Seconds and peak memory of a process, and what it says of itself."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().splitlines()
    record = {"seconds": time.perf_counter() - start, "peak_gb": usage.ru_maxrss / 1e6}
    if process.returncode:
        return {"error": (lines or ["no message"])[-1], **record}
    said = [line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")]
    return {**record, **(json.loads(said[0]) if said else {})}


def task_sampling(options: argparse.Namespace) -> Record:
    """In turn: completion per spot, and a step of each phase."""
    import published
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lgdist_scvi import LGDiST
    from lgdist_scvi.model._options import BATCH_SIZE, N_SAMPLES, N_STEPS
    from lgdist_scvi.module._posterior import draw_noise, predict
    from lgdist_scvi.train import AutoencoderPlan, DiffusionPlan
    from lgdist_scvi.train._statistics import clean_codes

    adata = simulated(2_000, 1_024, detected=0.15)
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, view = model.module.to(device), model._view()
    view.clean = clean_codes(module, view)
    noise = draw_noise(N_SAMPLES, module.denoiser.code_std.numel(), 0).to(device)
    n_published, n_training = 8, 128
    theirs = published.Autoencoder(adata.n_vars).to(device), published.Denoiser().to(device)
    expression = torch.rand(n_training, published.N_TOKENS, adata.n_vars, device=device)
    completed, trained = np.arange(BATCH_SIZE), np.arange(n_training)
    plans = [AutoencoderPlan(module), DiffusionPlan(module)]

    def timed(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def step(losses: Callable[[], list[torch.Tensor]], parameters: list[torch.nn.Parameter]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(parameters, 1e-5)

        def run() -> None:
            optimizer.zero_grad()
            sum(losses()).backward()
            optimizer.step()

        return run

    def losses() -> list[torch.Tensor]:
        batch = view.gather(trained).to(device)
        module.train()
        return [plan.loss(batch).loss for plan in plans]

    work = {
        "completion": lambda: predict(module.eval(), view.gather(completed), noise, N_STEPS),
        "published completion": lambda: published.complete(
            theirs[0].eval(), theirs[1].eval(), expression[:n_published]
        ),
        "training step": step(losses, list(module.parameters())),
        "published training step": step(
            lambda: published.training_losses(theirs[0].train(), theirs[1].train(), expression),
            [*theirs[0].parameters(), *theirs[1].parameters()],
        ),
    }
    spots = {"completion": len(completed), "published completion": n_published}
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(options.rounds + 1):
        for name, run in work.items():
            seconds = timed(run)
            if round_:  # the first warms up
                times[name].append(seconds / spots.get(name, 1))
    flops = {}
    for name, run in work.items():
        with FlopCounterMode(display=False) as counter:
            run()
        flops[name] = counter.get_total_flops() / spots.get(name, 1)
    square = torch.rand(2048, 2048, device=device)
    rate = 2 * 2048**3 / median(timed(lambda: square @ square) for _ in range(10))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"times": times, "flops": flops, "flops_per_s": rate, "device": name}


def task_section(options: argparse.Namespace) -> Record:
    """Every method in turn, in processes of their own."""
    sys.path.insert(0, str(options.shared / "bench"))
    import completion

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.h5ad"
        train, _ = completion.split_thinned(completion.load(options.shared / "data" / SECTION), 0)
        train.write_h5ad(path)
        commands = {name: [options.peer_python, __file__, "--child", name, str(path)] for name in CHILDREN}
        commands["lgdist"][0] = sys.executable
        script = options.shared / "bench" / "run_spackle.py"
        commands["spackle"] = [options.peer_python, str(script), str(path), f"{folder}/out.h5ad"]
        runs: dict[str, list[Record]] = {name: [] for name in METHODS}
        for round_ in range(options.rounds):
            for name in METHODS:
                if name in options.methods and not (round_ and name in ONCE):
                    runs[name].append(measured(commands[name]))
                    print(name, runs[name][-1], flush=True)
        return {"runs": runs, "shape": train.shape}


def task_growth(sizes: list[tuple[int, int]]) -> Record:
    runs = []
    for n_spots, n_genes in sizes:
        runs.append(measured([sys.executable, __file__, "--child", "growth", str(n_spots), str(n_genes)]))
        print(runs[-1], flush=True)
    return {"runs": runs}


def task_files(sizes: list[int], n_genes: int, detected: float) -> Record:
    """Twice as many genes in the file as are selected."""
    runs = []
    for n_spots in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/spots.h5ad"
            start = [sys.executable, __file__, "--child"]
            made = measured([*start, "simulate", str(n_spots), str(2 * n_genes), str(detected), path])
            found = measured([*start, "file", str(n_genes), path])
        runs.append({**found, **{name: made[name] for name in ("nonzero", "molecules")}})
        print(runs[-1], flush=True)
    return {"runs": runs}


TASKS: dict[str, Callable[[argparse.Namespace], Record]] = {
    "sampling": task_sampling,
    "section": task_section,
    "spots": lambda options: task_growth([(n, 1_000) for n in SPOTS]),
    "genes": lambda options: task_growth([(2_000, n) for n in GENES]),
    "large": lambda options: task_growth([(LARGE, 1_000)]),
    "cells": lambda options: task_files(options.sizes, 300, 0.25),
    "bins": lambda options: task_files(options.sizes, 1_000, 0.024),
    "domains": lambda _: {"runs": [measured([sys.executable, __file__, "--child", "domains", str(n)]) for n in NICHES]},
}

INTRODUCTION = """\
# Speed and memory

Written by `make benchmark-speed`, from one run of each task. Times of different tables were not taken at the same time, and
those of one table on a machine that did other things as well; the ratios are of medians of runs that took turns.
"""


def page(results: dict[str, Record]) -> str:
    """The tables of what was measured."""
    lines = [INTRODUCTION]
    if found := results.get("sampling"):
        times = {name: median(values) for name, values in found["times"].items()}
        rows = []
        for name, what in {"completion": "completion of a spot", "training step": "one step of each phase"}.items():
            ours, theirs = times[name], times[f"published {name}"]
            floor = found["flops"][name] / found["flops_per_s"]
            row = [what, f"{1e3 * ours:.1f}", f"{1e3 * theirs:.0f}", ratio(theirs, ours)]
            rows.append([*row, f"{found['flops'][name] / 1e9:.2f}", f"{floor / ours:.0%}"])
        lines += [
            f"## Against the published configuration\n\n{where(found)} 1,024 genes; steps of 128 spots. The published configuration "
            "(an autoencoder of width 512, a diffusion transformer of width 1,024 with twelve layers, fifty steps over seven "
            "tokens) was rebuilt from the paper's description for this comparison (`benchmarks/published.py`). Our completion "
            "predicts every entry without its own count, which takes five passes, each with four samples of four steps. The floor "
            "is what the products of matrices alone would take at the rate of large ones, "
            f"{found['flops_per_s'] / 1e9:.0f} GFLOP/s in this run.\n",
            *table(["", "LGDiST, ms", "published, ms", "ratio", "LGDiST, GFLOP", "floor / measured"], rows),
            "",
        ]
    if found := results.get("section"):
        rows, ours = [], None
        for name, runs in found["runs"].items():
            good = [run for run in runs if "error" not in run]
            if not good:
                rows.append([METHODS[name], *[runs[0]["error"] if runs else "not run"], "", "", "", ""])
                continue
            total = median(run["seconds"] for run in good)
            ours = total if ours is None else ours
            step = f"{1e3 * median(run['step'] for run in good):.0f}" if "step" in good[0] else ""
            peak = median(run["peak_gb"] for run in good)
            rows.append([METHODS[name], f"{total:.0f}", ratio(total, ours), step, f"{peak:.1f}", str(len(good))])
        header = ["method", "seconds", "of LGDiST's", "training step, ms", "peak memory, GB", "runs"]
        lines += [
            f"## From counts to a completed matrix\n\n{where(found)} Cortex section 151674, {found['shape'][0]} spots, "
            f"{found['shape'][1]} genes, defaults; the whole process, start-up included. scVI trains its default number of "
            "epochs. SpaCKLE (`spared`) trains for its 1,000 steps or ten minutes, on the 128 target genes alone.\n",
            *table(header, rows),
            "",
        ]
    for name, of in {"spots": "n_spots", "genes": "n_genes"}.items():
        if found := results.get(name):
            lines += growth(name, of, found)
    if found := results.get("large"):
        run = found["runs"][0]
        lines += [
            f"## {run['n_spots']:,} spots\n\n{where(found)} {run['n_genes']:,} genes, {run['nonzero'] / 1e6:.0f} million counts that "
            f"are not zero, one pass of training in each phase: {run['train']:.0f} s of training and {run['complete']:.0f} s to "
            f"complete and write {run['file_gb']:.1f} GB, with a peak of {run['peak_gb']:.1f} GB of memory for the whole process.\n"
        ]
    for name in ("cells", "bins"):
        if found := results.get(name):
            lines += from_files(name, found)
    if found := results.get("domains"):
        lines += of_domains(found)
    return "\n".join(lines).strip() + "\n"


def from_files(name: str, found: Record) -> list[str]:
    runs = found["runs"]
    parts = ("select", *PARTS)
    rows = [
        [
            f"{run['n_spots']:,}",
            str(run["passes"]),
            *(f"{run[part]:.0f}" for part in parts),
            *(f"{run[when] - run['before_gb']:.2f}" for when in ("selected_gb", "trained_gb", "peak_gb")),
        ]
        for run in runs
    ]
    last, one = runs[-1], runs[-2]
    spots = last["n_spots"] - one["n_spots"]
    # What each more costs; what has to be started is paid once.
    seconds = sum(last[part] - one[part] for part in parts) / spots
    header = [name, "passes", "selection, s", "setup, s", "training, s", "completion, s"]
    header += [f"GB after {when}" for when in ("selection", "training", "completion")]
    return [
        f"## From file to file: {name}\n\n{where(found)} Simulated {name} of {last['molecules']:.0f} molecules, of whose "
        f"{2 * last['n_genes']:,} genes {last['n_genes']:,} are selected from a backed file (`pp.select_genes`); completed "
        "values are written in blocks. Passes are those of the training through all spots. Memory is the largest so far beyond that of the imports; up to 0.5 GB of it "
        f"are neighbourhoods, which are not kept beyond. Between the last two rows each of the {name} costs {1e3 * seconds:.1f} ms: by "
        f"this slope a million take {1e6 * seconds / 3600:.1f} hours.\n",
        *table(header, rows),
        "",
    ]


def growth(name: str, of: str, found: Record) -> list[str]:
    runs = found["runs"]
    rows = [
        [
            f"{run[of]:,}",
            *(f"{run[part]:.0f}" for part in PARTS),
            f"{run['peak_gb']:.2f}",
            f"{own_gb(run):.2f}",
        ]
        for run in runs
    ]
    slope = power(runs[-2], runs[-1], of, lambda run: sum(run[part] for part in PARTS))
    memory = power(runs[-2], runs[-1], of, own_gb)
    header = [name, "setup, s", "training, s", "completion, s", "peak memory, GB", "of which the model's"]
    return [
        f"## Growth with the number of {name}\n\n{where(found)} Simulated spots, 5% of the entries not zero, one pass of training in "
        f"each phase, completion written to disk. Between the last two rows time grows with the power {slope:.2f} of the number "
        f"of {name}, and the model's memory with the power {memory:.2f}.\n",
        *table(header, rows),
        "",
    ]


def of_domains(found: Record) -> list[str]:
    small, large = found["runs"]
    slope = power(small, large, "n_spots", own_gb)
    rows = [
        [f"{run['n_spots']:,}", f"{run['given']:.1f}", f"{run['suggested']:.1f}", f"{own_gb(run):.2f}"]
        for run in found["runs"]
    ]
    return [
        f"## Domains\n\n{where(found)} Seven simulated domains of niches of 15 components, by `tl.domains` with its defaults: five seeds "
        f"of ten starts. Memory is the largest beyond that of the imports; it grows with the power {slope:.2f} of the number of spots.\n",
        *table(["spots", "seven domains, s", "number suggested, s", "memory, GB"], rows),
        "",
    ]


def own_gb(run: Record) -> float:
    """Largest memory beyond that of the imports."""
    return run["peak_gb"] - run["before_gb"]


def power(small: Record, large: Record, of: str, cost: Callable[[Record], float]) -> float:
    """Power of the size with which a cost grows between two runs."""
    return np.log(cost(large) / cost(small)) / np.log(large[of] / small[of])


def ratio(one: float, other: float) -> str:
    return f"{one / other:.3g}"


def where(found: Record) -> str:
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    return f"{found.get('device', 'CPU')} ({found['machine']}, {threads}), commit {found['commit']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each thing that is compared (default: 3)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=list(FILES), metavar="SPOTS", help="for cells and bins, at least two"
    )
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="interpreter with the peers")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of bench/ and data/")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    options.shared = options.shared.resolve()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for task in () if options.render else options.tasks:
        code = Code(dirty=True)
        record = {
            "commit": code.commit + " with changes" * code.changed,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            **TASKS[task](options),
        }
        (FOLDER / f"{task}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    results = {task: json.loads(file.read_text()) for task in TASKS if (file := FOLDER / f"{task}.json").exists()}
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
