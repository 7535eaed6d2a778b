"""Inputs of every kind that went wrong at random are refused or used as they should be; see ``fuzzing``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(sys.platform == "win32", reason="no fork"),
]


def test_none_is_silent_or_harmful():
    """A few of each group; with ``LGDIST_FUZZ=500`` as many together, and `make test-all` does so.

    In a process of its own: a fork of this one would wait for threads of earlier tests.
    """
    folder = Path(__file__).parent
    groups = "spatialdata images folders arguments".split()
    command = "import sys; from fuzzing.judge import run; sys.exit(run(sys.argv[2:], int(sys.argv[1]), seed=0) > 0)"
    number = os.environ.get("LGDIST_FUZZ") or "24"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    }
    run = subprocess.run(
        [sys.executable, "-c", command, number, *groups],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert f"{number} inputs, seed 0: 0 went wrong" in run.stdout
