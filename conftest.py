"""Tests of the documentation: every code block of the README and of the pages, and every example of a docstring, runs."""

import doctest
import functools
import importlib.metadata
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack, chdir
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from sybil import Document, Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

ROOT = Path(__file__).parent
SHELL = ("bash", "console")


def _start(namespace: dict[str, Any], document: str, *, quick: bool) -> None:
    """Give the blocks of one page a folder of their own, with the input that they name; `quick` cuts training short."""
    import matplotlib

    import lgdist_scvi

    matplotlib.use("agg")
    stack = namespace["_stack"] = ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{document}-"))
    stack.enter_context(chdir(folder))
    lgdist_scvi.datasets.simulated_tissue(100, 40, n_libraries=2).write_h5ad("IN.h5ad")
    if quick:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        train = partialmethod(lgdist_scvi.LGDiST.train, max_epochs=2, enable_progress_bar=False)
        patch.setattr(lgdist_scvi.LGDiST, "train", train)


def _stop(namespace: dict[str, Any]) -> None:
    namespace["_stack"].close()


def _run_shell(example: Example) -> None:
    """Run the lines of a block that calls our command; see that targets and extras exist where it installs."""
    for line in filter(None, (line.partition("#")[0].strip() for line in str(example.parsed).splitlines())):
        program, *arguments = shlex.split(line)
        if program == "make":  # .ci/run runs them
            subprocess.run([program, "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            known = importlib.metadata.metadata("lgdist-scvi").get_all("Provides-Extra")
            wanted = Requirement(arguments[-1].replace(".[", "lgdist-scvi[")).extras if "[" in line else ()
            assert set(wanted) <= set(known), f"{line}: the extras are {known}"
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            subprocess.run(line, shell=True, check=True, env=os.environ | {"PATH": path, "TQDM_DISABLE": "1"})


def _pages(*patterns: str, quick: bool) -> Sybil:
    return Sybil(
        parsers=[PythonCodeBlockParser(), *(CodeBlockParser(language, _run_shell) for language in SHELL)],
        patterns=patterns,
        excludes=["docs/_build/**", "docs/generated/**", "docs/tutorials/**"],
        setup=lambda namespace: _start(namespace, "page", quick=quick),
        teardown=_stop,
    )


class _Docstrings(PythonDocStringDocument):
    """Docstrings of a module, whose examples see no more than a reader has: without the module's own names."""

    def __init__(self, text: str, path: str) -> None:
        Document.__init__(self, text, path)


@functools.cache
def _trained() -> tuple[Any, tempfile.TemporaryDirectory]:
    """A tissue and a folder with a small model of it, once for all docstrings."""
    import lgdist_scvi

    adata = lgdist_scvi.datasets.simulated_tissue(150, 40)
    lgdist_scvi.LGDiST.setup_anndata(adata, layer="counts", image_key="X_image")
    sizes = {"n_hidden": 32, "n_layers": 1, "n_denoiser_hidden": 32, "n_denoiser_layers": 1, "n_diffusion_steps": 100}
    model = lgdist_scvi.LGDiST(adata, n_latent=8, n_heads=2, **sizes)
    model.train(accelerator="cpu")
    model.add_completed_layer(return_std=True)
    folder = tempfile.TemporaryDirectory(prefix="docstrings-")
    model.save(Path(folder.name, "model"))
    return adata, folder


def _spatialdata(adata: Any) -> Any:
    """The counts as the table of circles in a SpatialData object."""
    import anndata
    import spatialdata
    from spatialdata.models import ShapesModel, TableModel

    circles = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=37.5)
    obs = adata.obs[[]].assign(region="spots", spot=circles.index.to_numpy())
    table = anndata.AnnData(adata.X, obs=obs.astype({"region": "category"}), var=adata.var[[]])
    table.layers["counts"] = adata.layers["counts"]
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    return spatialdata.SpatialData(shapes={"spots": circles}, tables={"table": table})


def _write_space_ranger(adata: Any, folder: Path) -> None:
    """What `pp.from_visium` reads."""
    import h5py
    import numpy as np
    from PIL import Image

    (folder / "spatial").mkdir(parents=True)
    counts, features = adata.layers["counts"].tocsr(), {"feature_type": "Gene Expression", "genome": "GRCh38"}
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"], matrix["shape"] = adata.obs_names.to_numpy(dtype="S"), counts.shape[::-1]
        matrix["data"], matrix["indices"], matrix["indptr"] = counts.data.astype(int), counts.indices, counts.indptr
        for name in ("id", "name"):
            matrix[f"features/{name}"] = adata.var_names.to_numpy(dtype="S")
        for name, value in features.items():
            matrix[f"features/{name}"] = np.full(adata.n_vars, value.encode())
        file.attrs["library_ids"] = [b"section_1"]
    x, y = adata.obsm["spatial"].round().astype(int).T
    places = adata.obs[["array_row", "array_col"]].assign(y=y, x=x)
    places.insert(0, "in_tissue", 1)
    places.to_csv(folder / "spatial/tissue_positions_list.csv", header=False)
    section = adata.uns["spatial"]["section_1"]
    for name in ("hires", "lowres"):
        Image.fromarray(section["images"]["hires"]).save(folder / f"spatial/tissue_{name}_image.png")
    factors = section["scalefactors"]
    factors = {**factors, "tissue_lowres_scalef": factors["tissue_hires_scalef"]}
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps({k: float(v) for k, v in factors.items()}))


def _start_docstrings(namespace: dict[str, Any]) -> None:
    """Give the examples of a module a tissue, a trained model of it and a folder of their own; nothing else is printed."""
    import matplotlib
    import numpy as np
    from matplotlib import pyplot as plt

    import lgdist_scvi

    matplotlib.use("agg")
    stack = namespace["_stack"] = ExitStack()
    stack.callback(plt.close, "all")
    stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory(prefix="docstring-"))))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for module in ("model._completion", "pp._images"):
        patch.setattr(f"lgdist_scvi.{module}.track", lambda items, **_: items)
    patch.setattr(lgdist_scvi.LGDiST, "_run_phase", _one_epoch(lgdist_scvi.LGDiST._run_phase))
    logging.disable(logging.WARNING)
    stack.callback(logging.disable, logging.NOTSET)

    adata, folder = _trained()
    adata = adata.copy()
    _write_space_ranger(adata, Path("outs"))
    model = lgdist_scvi.LGDiST.load(Path(folder.name, "model"), adata, accelerator="cpu")
    view = model._view()
    namespace |= {"lgdist_scvi": lgdist_scvi, "np": np, "adata": adata, "model": model, "sdata": _spatialdata(adata)}
    namespace |= {"view": view, "batch": view.gather(np.arange(8))}


def _one_epoch(run: Any) -> Any:
    """Training that is short, unless an example says how long, and silent."""

    def run_phase(self, plan, name, data, max_epochs, plan_kwargs, trainer_kwargs):
        run(self, plan, name, data, max_epochs or 1, plan_kwargs, {**trainer_kwargs, "enable_progress_bar": False})

    return run_phase


_docstrings = Sybil(
    parsers=[DocTestParser(doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)],
    patterns=["src/lgdist_scvi/*.py", "src/lgdist_scvi/**/*.py"],
    document_types={".py": _Docstrings},
    setup=_start_docstrings,
    teardown=_stop,
)

# The README runs as it is. Of the pages' many trainings only the steps matter.
pytest_collect_file = SybilCollection(
    [_pages("README.md", quick=False), _pages("docs/*.md", quick=True), _docstrings]
).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count the pages among the slow tests."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.slow)
