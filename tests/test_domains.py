"""The leaderboard of domains: votes, what is kept, and the page."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def domains(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(benchmarks)
    return importlib.import_module("domains")


def test_a_vote_removes_a_lone_spot(domains):
    rows, columns = np.mgrid[:9, :9]
    labels = np.where(columns.ravel() < 4, 0, 1)
    labels[40] = 0
    voted = domains.voted(labels, np.column_stack([columns.ravel(), rows.ravel()]).astype(float))
    assert voted[40] == 1
    assert voted[0] == 0


def test_every_seed_is_scored_once(domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from anndata import AnnData

    view = AnnData(np.zeros((60, 2), dtype=np.float32), obsm={"spatial": np.random.default_rng(0).random((60, 2))})
    view.obs["layer"], view.obs["lib"], view.obs["slide"] = np.repeat(["a", "b", "nan"], 20), 1.0, "0"
    monkeypatch.setattr(domains, "read", lambda name: view)
    codes = np.repeat([[0.0], [5.0], [5.0]], 20, axis=0) + np.random.default_rng(1).normal(size=(60, 1)) * 0.1
    calls = []
    monkeypatch.setitem(domains.METHODS, "raw_pca", lambda given: calls.append(list(given.obs)) or codes)
    arguments = ["--sets", "cortex_151673", "--methods", "raw_pca", "--recipes", "kmeans", "--seeds", "2"]
    folders = ["--out", str(tmp_path / "results"), "--pages", str(tmp_path / "pages")]
    for _ in range(2):
        domains.main(arguments + folders)
    assert calls == [["lib", "slide"]]  # the annotation is not given, and nothing is made twice
    kept = json.loads((tmp_path / "results" / "cortex_151673.json").read_text())
    assert kept["raw_pca"]["domains"]["kmeans"].keys() == {"0", "1"}
    assert kept["raw_pca"]["domains"]["kmeans"]["0"][0] == 1.0  # the spots without a layer do not count
    assert "1.000" in (tmp_path / "pages" / "domains.md").read_text()


def test_the_page_of_the_documentation_is_that_of_the_results(domains, tmp_path: Path):
    domains.main(["--render", "--pages", str(tmp_path)])
    assert (tmp_path / "domains.md").read_text() == (domains.ROOT / "docs" / "benchmarks" / "domains.md").read_text()


def test_sections_together_are_no_neighbours(domains):
    """Whatever smooths over neighbours stays within a section, and each section is scored by itself."""
    from anndata import AnnData
    from scipy.spatial import cKDTree

    positions = np.random.default_rng(0).random((30, 2))
    sections = {
        name: AnnData(np.zeros((30, 2), dtype=np.float32), obsm={"spatial": positions}) for name in ("one", "two")
    }
    view = domains.together(sections)
    near = cKDTree(view.obsm["spatial"]).query(view.obsm["spatial"], 19)[1]
    section = view.obs["slide"].to_numpy()
    assert (section[near] == section[:, None]).all()

    labels = np.array(["a", "b"] * 30)
    found = np.where(section == "one", labels == "a", 2)
    everywhere = np.ones(60, dtype=bool)
    assert domains.score(labels, found, view.obs["slide"], everywhere) == 0.5  # 1 in the first and 0 in the second


def test_the_page_on_integration_is_that_of_the_results(domains, tmp_path: Path):
    integration = importlib.import_module("integration")
    integration.main(["--render", "--page", str(tmp_path / "integration.md")])
    assert (tmp_path / "integration.md").read_text() == integration.PAGE.read_text()
