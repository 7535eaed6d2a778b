"""Faults at random moments leave the input unchanged and the output whole or absent; see ``faults.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no fork, and other signals")
@pytest.mark.timeout(7200)
def test_faults_at_random_moments():
    """A few of them; ``LGDIST_FAULTS=200`` breaks as many calls, and `make test-all` does."""
    number = os.environ.get("LGDIST_FAULTS") or "6"
    folder = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    }
    command = [sys.executable, str(folder / "faults.py"), number]
    run = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert f"{number} faults, seed 0: 0 went wrong" in run.stdout
