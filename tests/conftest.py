"""What every test shares: seeds, the number of threads, and the folder of real sections."""

import csv
import gc
import os
import random
import re
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from small_models import small, trained  # noqa: F401  fixtures

# Models as small as those of the tests gain nothing from more threads, and several workers lose.
torch.set_num_threads(1)

# The time of one example says little where the first one compiles or loads something. The examples are the same each time,
# so that a commit passes or fails wherever it is tested; new ones are searched where that is asked for (`make test-all`).
hypothesis.settings.register_profile(
    "lgdist", deadline=None, derandomize=not os.environ.get("LGDIST_FUZZ"), print_blob=True
)
hypothesis.settings.load_profile("lgdist")

_DATA = "LGDIST_TEST_DATA"
_ERRORS = "LGDIST_LIST_ERRORS"
_REQUIRE_DATA = "LGDIST_REQUIRE_DATA"
# What these tests provoke are no mistakes of a user.
_NOT_LISTED = ("tests/dataloaders/", "tests/train/", "tests/test_cuda.py", "tests/test_quiet.py")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data(pytestconfig: pytest.Config) -> Path:
    """Folder of real sections as ``.h5ad`` files; a test that uses it is skipped where the folder is absent.

    The folder is ``LGDIST_TEST_DATA``, relative to the root of the repository, by default ``../shared/data``.
    """
    folder = pytestconfig.rootpath / (os.environ.get(_DATA) or "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"no real sections at {folder.resolve()}; name their folder in the environment variable {_DATA}")
    return folder.resolve()


# The files that take longest, begun first where several workers share the tests (`pytest -n 2 --dist loadfile`): what
# is begun last should be short.
LONGEST = (
    "test_default_training.py",
    "test_faults.py",
    "test_tutorials.py",
    "test_leak.py",
    "test_layers.py",
    "test_training.py",
    "test_prediction.py",
    "test_fuzz.py",
    "test_properties.py",
    "user_guide.md",
    "test_truth.py",
    "test_benchmarks.py",
    "test_completion.py",
    "test_distributed.py",
    "test_readout.py",
    "test_cli.py",
    "test_save_load.py",
    "test_images.py",
    "README.md",
    "test_setup.py",
)


def pytest_configure() -> None:
    """List every error and warning that a test provokes in the file named by ``LGDIST_LIST_ERRORS`` (`make errors`)."""
    if path := os.environ.get(_ERRORS):
        rows = csv.writer(open(path, "w", newline="", encoding="utf-8"))
        rows.writerow(["test", "raised", "message"])
        for name in ("raises", "warns"):
            setattr(pytest, name, _listed(getattr(pytest, name), rows))


def _listed(expect, rows):
    @contextmanager
    def listed(*args, **options):
        with expect(*args, **options) as caught:
            yield caught
        test = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        if test.startswith(_NOT_LISTED):
            return
        for error in [caught.value] if hasattr(caught, "value") else [warning.message for warning in caught]:
            # Without the folder of this run.
            message = re.sub(r"\S*/pytest-\d+/[^/\s]+/", "", " ".join(str(error).split()))
            rows.writerow([test, type(error).__name__, message])

    return listed


def _lacks_gpu(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None and not torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need real sections or a GPU, so that ``-m`` can choose among them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.slow)
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)
        if _lacks_gpu(item):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Spare the garbage collection, which every training starts with, the objects of the imports and of the collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Count a skip as a failure where the real sections are required (``LGDIST_REQUIRE_DATA=1``)."""
    report = yield
    required = os.environ.get(_REQUIRE_DATA) == "1" and item.get_closest_marker("real_data") and not _lacks_gpu(item)
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although {_REQUIRE_DATA}=1 says that the real sections are here: {report.longrepr}"
    return report


@pytest.fixture
def benchmarks(pytestconfig: pytest.Config) -> Path:
    """Folder of the benchmarks, which an installed package does not have."""
    folder = pytestconfig.rootpath / "benchmarks"
    if not folder.is_dir():
        pytest.skip("the benchmarks are not part of this installation")
    return folder
