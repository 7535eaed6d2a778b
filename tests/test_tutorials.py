"""The tutorials: that they run, on simulated and on real tissue, and that what is stored of them was run."""

import builtins
import logging
import os
import re
import sys
import warnings
from contextlib import chdir
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest
import scanpy
from brief import train_briefly
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt
from matplotlib_inline.config import InlineBackend
from nbclient import NotebookClient
from traitlets.config import Config

from lgdist_scvi import datasets
from lgdist_scvi.datasets import _examples, simulated_tissue

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
START = "../docs/start.ipynb"  # on simulated tissue
LARGEST = 1_500_000  # bytes of a stored notebook
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def run(name, folder, **environment):
    """In a kernel, as a reader runs it."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | environment)
    return notebook


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_there_are_tutorials():
    assert len(NOTEBOOKS) == 10


@pytest.mark.parametrize("name", [*NOTEBOOKS, START])
def test_what_is_stored_was_run(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o["output_type"] == "error"]
    assert all(cell.metadata["execution"] for cell in code)  # times, from which the list of tutorials has its minutes
    assert name == START or ".h5ad" in printed(notebook)  # says on which real section
    assert not re.search(r"(?<![\w/])/\w+/", printed(notebook))  # a path of one machine
    assert "widgets" not in notebook.metadata  # progress bars
    assert (FOLDER / name).stat().st_size < LARGEST


def smaller(n_spots, n_genes, **options):
    return simulated_tissue(n_spots // 4, n_genes // 2, **options)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython in this process, which spares a kernel its start; whatever a notebook sets is set back."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    had = set(vars(builtins))
    loggers = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "scvi")}
    verbosity, folder = scanpy.settings.verbosity, tmp_path / "notebook"
    folder.mkdir()
    with warnings.catch_warnings(), mpl.rc_context(), chdir(folder):
        shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        shell.configurables.append(InlineBackend.instance(parent=shell))
        yield shell
        shell.reset()
        shell.restore_sys_module_state()
        InlineBackend.clear_instance()
        InteractiveShell.clear_instance()
    plt.close("all")
    scanpy.settings.verbosity = verbosity
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)
    for name in set(vars(builtins)) - had:
        delattr(builtins, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NOTEBOOKS, START])
def test_runs_without_data_and_network(name, shell, monkeypatch, capsys):
    for variable, value in (NOWHERE | {"LGDIST_EXAMPLE_DATA": "", "TQDM_DISABLE": "1"}).items():
        monkeypatch.setenv(variable, value)
    train_briefly(monkeypatch)
    for module in (_examples, datasets):
        monkeypatch.setattr(
            module, "simulated_tissue", lambda n_spots=1000, n_genes=400, **of: smaller(n_spots, n_genes, **of)
        )
    for cell in nbformat.read(FOLDER / name, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()
            plt.close("all")
    assert name == START or "simulated_tissue" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize("name", [*NOTEBOOKS, START])
def test_runs_at_full_length_without_data_and_network(name, tmp_path):
    notebook = run(name, tmp_path, LGDIST_EXAMPLE_DATA="", **NOWHERE)
    assert name == START or "simulated_tissue" in printed(notebook)


@pytest.mark.full
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_real_sections(name, tmp_path, real_data):
    assert ".h5ad" in printed(run(name, tmp_path, LGDIST_EXAMPLE_DATA=str(real_data)))
