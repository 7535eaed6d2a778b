"""Inputs of every kind that went wrong at random are refused or used as they should be; see ``fuzzing``."""

import os
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(sys.platform == "win32", reason="no fork"),
]


@pytest.mark.parametrize("group", ["spatialdata", "images", "folders", "arguments"])
def test_none_is_silent_or_harmful(group):
    """A few of each; with ``LGDIST_FUZZ=500`` a quarter as many of each, and `make test-all` does so."""
    from fuzzing.judge import run

    said = []
    assert run([group], int(os.environ.get("LGDIST_FUZZ") or 24) // 4, seed=0, say=said.append) == 0, said
