#!/usr/bin/env python3
"""Whether memory and open files grow while sections are trained on and completed one after the other in one process.

    long_run.py [--cycles CYCLES]

Each cycle makes a section, registers it, trains a small model briefly, completes the section and a new one, writes the
completion to disk, and saves and loads the model. Every tenth line is printed; the last says what has grown since the
tenth cycle.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path

import psutil

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

OPTIONS = {"n_hidden": 32, "n_layers": 1, "n_denoiser_hidden": 32, "n_denoiser_layers": 1}
READ = {"n_samples": 1, "n_steps": 1, "silent": True}


def cycle(seed: int, folder: Path) -> None:
    """From a section to a saved completion."""
    section, other = (simulated_tissue(n_spots=600, n_genes=200, seed=seed + i) for i in (0, 100_000))
    LGDiST.setup_anndata(section, layer="counts")
    model = LGDiST(section, **OPTIONS)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    model.get_completed_expression(**READ)
    model.get_completed_expression(other, **READ)
    model.write_completed(folder / "completed.h5ad", overwrite=True, **READ)
    model.save(folder / "model", overwrite=True)
    LGDiST.load(folder / "model", adata=section).get_completed_expression(**READ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=200, help="(default: 200)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    process, seen = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.cycles):
            cycle(number, Path(folder))
            seen.append((process.memory_info().rss / 1e6, process.num_fds() if os.name == "posix" else 0))
            if number % 10 == 9:
                print(f"{number + 1} cycles: {seen[-1][0]:.0f} MB, {seen[-1][1]} open files", flush=True)
    (first, files), (last, now) = seen[min(9, len(seen) - 1)], seen[-1]
    print(f"since the tenth cycle: {last - first:+.0f} MB, {now - files:+d} open files")


if __name__ == "__main__":
    main()
