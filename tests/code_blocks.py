"""Runs every code block of the README and of the pages, page by page, and every example of a docstring."""

import doctest
import functools
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from brief import train_briefly
from formats import as_spatialdata, tiled_slide, write_space_ranger, write_visium_hd
from matplotlib import pyplot as plt
from packaging.requirements import Requirement
from sybil import Document, Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

import lgdist_scvi
from lgdist_scvi import cli
from lgdist_scvi.datasets import simulated_tissue

ROOT = Path(__file__).parents[1]
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


class _Docstrings(PythonDocStringDocument):
    """Docstrings of a module, whose examples see no more than a reader has: without the module's own names."""

    def __init__(self, text: str, path: str) -> None:
        Document.__init__(self, text, path)


def _start(namespace: dict[str, Any], *, quick: bool = True) -> pytest.MonkeyPatch:
    """Open a folder for the blocks of a document, with the files that they name; `quick` cuts training short."""
    namespace["_quick"] = quick
    stack = namespace["_stack"] = ExitStack()
    stack.callback(plt.close, "all")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.enter_context(chdir(folder))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("TQDM_DISABLE", "1")
    patch.setattr("squidpy.datasets.visium", _no_download)
    if quick:
        train_briefly(patch)
    write_space_ranger(simulated_tissue(100, 40), folder / "outs")
    write_visium_hd(simulated_tissue(100, 40), folder / "outs_hd")
    return patch


def _start_page(namespace: dict[str, Any], *, quick: bool = True) -> None:
    """Write what the pages read; with `quick` the tissues that they simulate are smaller."""
    patch = _start(namespace, quick=quick)
    if quick:
        patch.setattr(lgdist_scvi.datasets, "simulated_tissue", _smaller)
    tissue = simulated_tissue(200, 60, n_libraries=2)
    tissue.write_h5ad("IN.h5ad")
    as_spatialdata(tissue).write("sections.zarr")


def _start_docstrings(namespace: dict[str, Any]) -> None:
    """Give the examples of a module a tissue and a trained model of it; nothing else is printed."""
    patch = _start(namespace)
    for module in ("model._reader", "pp._images"):
        patch.setattr(f"lgdist_scvi.{module}.track", lambda items, **_: items)
    logging.disable(logging.WARNING)
    namespace["_stack"].callback(logging.disable, logging.NOTSET)
    adata, folder = _trained()
    adata = adata.copy()
    model = lgdist_scvi.LGDiST.load(Path(folder.name, "model"), adata, accelerator="cpu")
    view = model._view()
    namespace |= {"lgdist_scvi": lgdist_scvi, "np": np, "adata": adata, "model": model, "sdata": as_spatialdata(adata)}
    corner, width = adata.obsm["spatial"].min(axis=0), np.ptp(adata.obsm["spatial"], axis=0).max()
    namespace["slide"] = tiled_slide(side=width / 5, corner=corner - width / 10)[0]
    namespace |= {"view": view, "batch": view.gather(np.arange(8))}


def run_at_full_length(page: Path) -> int:
    """Run the blocks of a page as a reader would, commands as processes, and count them."""
    document = PAGES.parse(page)
    _start_page(document.namespace, quick=False)
    try:
        examples = list(document.examples())
        for example in examples:
            example.evaluate()
    finally:
        _stop(document.namespace)
    return len(examples)


def _smaller(n_spots: int = 1000, n_genes: int = 400, **options: Any) -> AnnData:
    return simulated_tissue(n_spots * 3 // 10, n_genes, **options)


def _no_download(sample: str) -> None:
    raise OSError("the tests download nothing")


def _stop(namespace: dict[str, Any]) -> None:
    namespace["_stack"].close()


@functools.cache
def _trained() -> tuple[Any, tempfile.TemporaryDirectory]:
    """A tissue and a folder with a small model of it, once for all docstrings."""
    adata = simulated_tissue(150, 40)
    lgdist_scvi.LGDiST.setup_anndata(adata, layer="counts", image_key="X_image")
    sizes = {"n_hidden": 32, "n_layers": 1, "n_denoiser_hidden": 32, "n_denoiser_layers": 1, "n_diffusion_steps": 100}
    model = lgdist_scvi.LGDiST(adata, n_latent=8, n_heads=2, **sizes)
    model.train(accelerator="cpu")
    model.add_completed_layer(return_std=True)
    folder = tempfile.TemporaryDirectory()
    model.save(Path(folder.name, "model"))
    return adata, folder


def _run_shell(example: Example) -> None:
    """Run the lines of a block. Of those that install only targets and extras are looked up: ``.ci/run`` installs."""
    for line in filter(None, (line.partition("#")[0].strip() for line in str(example.parsed).splitlines())):
        _run_line(line, example.namespace["_quick"])


@functools.cache  # several pages show the same
def _run_line(line: str, quick: bool) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        subprocess.run([program, "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == "pip":
        named = [argument.replace(".[", "lgdist-scvi[") for argument in arguments if "[" in argument]
        missing = {extra for name in named for extra in Requirement(name).extras} - EXTRAS
        assert not missing, f"{line}: there is no extra {missing}"
    elif program == "lgdist-scvi" and quick:
        # In this process, where training is cut short.
        assert cli.main(arguments) == 0
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(["bash", "-c", line], check=True, env=os.environ | {"PATH": path})


PARSERS = [PythonCodeBlockParser(), CodeBlockParser("bash", _run_shell)]
PAGES = Sybil(parsers=PARSERS, patterns=["README.md", "docs/*.md"], path=str(ROOT), setup=_start_page, teardown=_stop)
DOCSTRINGS = Sybil(
    parsers=[DocTestParser(doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)],
    patterns=["src/lgdist_scvi/*.py", "src/lgdist_scvi/**/*.py"],
    path=str(ROOT),
    document_types={".py": _Docstrings},
    setup=_start_docstrings,
    teardown=_stop,
)
