"""The package as it is installed: version, typing marker, console script, and what an import costs."""

import importlib
import importlib.metadata
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lgdist_scvi


def test_version_is_that_of_the_distribution():
    assert lgdist_scvi.__version__ == importlib.metadata.version("lgdist-scvi")


def test_typing_marker_ships():
    assert importlib.resources.files("lgdist_scvi").joinpath("py.typed").is_file()


def test_console_script_is_installed_and_answers():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="lgdist-scvi")
    assert script.value == "lgdist_scvi.cli:main"
    assert callable(script.load())


def test_import_adds_no_heavy_package_to_what_scvi_loads_and_help_needs_none():
    """In a process of its own, which also answers `lgdist-scvi --help`."""
    heavy = ["diffusers", "igraph", "scanpy", "seaborn", "spatialdata", "squidpy"]
    code = (
        "import sys, scvi\n"
        "before = set(sys.modules)\n"
        "import lgdist_scvi\n"
        "from lgdist_scvi.cli import main\n"
        "try:\n"
        "    code = main(['--help'])\n"
        "except SystemExit as stopped:\n"
        "    code = stopped.code\n"
        f"print([name for name in {heavy} if name in sys.modules and name not in before])\n"
        "sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "complete" in run.stdout
    assert "demo" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["", ".datasets", ".metrics", ".pl", ".pp", ".tl"])
def test_every_public_name_exists_and_is_documented(pytestconfig: pytest.Config, name: str):
    page = Path(pytestconfig.rootpath, "docs", "api.md")
    if not page.is_file():
        pytest.skip("the documentation is not part of this installation")
    documented = set(re.findall(r"^ +([\w.]+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    module = importlib.import_module("lgdist_scvi" + name)
    prefix = name.removeprefix(".") + "." if name else ""
    for public in module.__all__:
        member = getattr(module, public)
        if callable(member):
            assert prefix + public in documented, f"docs/api.md does not list {prefix + public}"
            assert member.__doc__, f"{prefix + public} has no docstring"
