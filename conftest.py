"""What must be set before anything is imported, and which files beside ``tests/`` hold tests."""

import os

# Before anything imports matplotlib: the tests draw without a screen.
os.environ.setdefault("MPLBACKEND", "agg")
# Nor do threads spin while they wait: on a busy machine that takes longer than the work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# One thread for each process, also for those that the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from code_blocks import DOCSTRINGS, PAGES
from sybil.sybil import SybilCollection

pytest_collect_file = SybilCollection([PAGES, DOCSTRINGS]).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count the blocks of pages among the slow tests."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.slow)
