"""The tutorials: that they run, on simulated and on real tissue, and that what is stored of them was run."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LARGEST = 1_500_000  # bytes of a stored notebook


def run(name, folder, **environment):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | environment)
    return notebook


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_there_are_tutorials():
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_was_run(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o["output_type"] == "error"]
    assert ".h5ad" in printed(notebook)  # says on which real section
    assert "/work/" not in printed(notebook) and "/home/" not in printed(notebook)
    assert (FOLDER / name).stat().st_size < LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_without_data_and_network(name, tmp_path):
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    notebook = run(name, tmp_path, LGDIST_EXAMPLE_DATA="", **nowhere)
    assert "simulated_tissue" in printed(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_real_sections(name, tmp_path, real_data):
    assert ".h5ad" in printed(run(name, tmp_path, LGDIST_EXAMPLE_DATA=str(real_data)))
