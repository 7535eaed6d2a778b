"""What must be set before anything is imported, and the tests of the documentation: every code block of README and pages."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack, chdir
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

# Before anything imports matplotlib: the tests draw without a screen.
os.environ.setdefault("MPLBACKEND", "agg")
# Nor do threads spin while they wait: on a busy machine that takes longer than the work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from packaging.requirements import Requirement
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parent
EXTRAS = set(importlib.metadata.metadata("lgdist-scvi").get_all("Provides-Extra") or [])


def _start(namespace: dict[str, Any], *, quick: bool) -> None:
    """Open a folder for the blocks of one page, with the files that they name; `quick` cuts training and tissues short."""
    import formats

    import lgdist_scvi

    stack = namespace["_stack"] = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.enter_context(chdir(folder))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("TQDM_DISABLE", "1")
    tissue = lgdist_scvi.datasets.simulated_tissue(200, 60, n_libraries=2)
    tissue.write_h5ad("IN.h5ad")
    formats.write_space_ranger(lgdist_scvi.datasets.simulated_tissue(100, 40), folder / "outs", header=True)
    formats.as_spatialdata(tissue).write("sections.zarr")
    if quick:
        train = partialmethod(lgdist_scvi.LGDiST.train, max_epochs=1, enable_progress_bar=False)
        patch.setattr(lgdist_scvi.LGDiST, "train", train)


def _stop(namespace: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    plt.close("all")
    namespace["_stack"].close()


def _run_shell(example: Example) -> None:
    """Run the lines of a block. Of those that install only the targets and the extras are looked up: `.ci/run` installs."""
    for line in filter(None, (line.partition("#")[0].strip() for line in str(example.parsed).splitlines())):
        program, *arguments = shlex.split(line)
        if program == "make":
            subprocess.run([program, "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            named = [argument.replace(".[", "lgdist-scvi[") for argument in arguments if "[" in argument]
            missing = {extra for name in named for extra in Requirement(name).extras} - EXTRAS
            assert not missing, f"{line}: there is no extra {missing}"
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            subprocess.run(["bash", "-c", line], check=True, env=os.environ | {"PATH": path})


def _pages(pattern: str, *, quick: bool) -> Sybil:
    return Sybil(
        parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", _run_shell)],
        pattern=pattern,
        setup=partial(_start, quick=quick),
        teardown=_stop,
    )


# The README runs as it is; of the many trainings of the pages only the steps matter.
pytest_collect_file = (_pages("README.md", quick=False) + _pages("docs/*.md", quick=True)).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the pages out of the quick tests."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.slow)
