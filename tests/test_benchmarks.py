"""The comparison with other methods: what is kept of it, and what is said of the results."""

import importlib
import json
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

# Stands in for the shared harness: every method gets the same score, and each start leaves a line.
HARNESS = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("name", "protocol", "seed", "data", "out", "methods", "external", "timeout", "threads"):
    parser.add_argument("--" + name, default="")
o = parser.parse_args()
with open(pathlib.Path(__file__).with_name("starts"), "a") as file:
    file.write(o.methods + "\\n")
results = {name: {"mse": 0.5, "d2": 0.1, "seconds": 1.0, "peak_rss_mib": 1} for name in o.methods.split(",")}
if "median" in results:
    results["median"] = {"seconds": 9.0, "peak_rss_mib": 1, "error": "exit -9: killed"}
file = pathlib.Path(o.out) / f"{o.name}_{o.protocol}_seed{o.seed}.json"
file.write_text(json.dumps({"info": {"data": o.data}, "results": results}))
"""


@pytest.fixture
def report(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(benchmarks)
    return importlib.import_module("report")


@pytest.fixture
def compare(report: ModuleType) -> ModuleType:
    return importlib.import_module("compare")


@pytest.mark.parametrize(
    ("protocol", "scores", "best", "margin", "over_spackle"),
    [
        ("A", {"lgdist": 0.18, "svd_nz": 0.24, "ridge_nz": 0.20, "spackle": 0.36}, "ridge_nz", 0.9, 0.5),
        ("B", {"lgdist": 0.53, "svd": 0.40, "knn_eb": 0.50, "spackle": 0.03}, "knn_eb", 0.03, 0.5),
    ],
)
def test_margin_is_taken_over_the_best_peer(report, protocol, scores, best, margin, over_spackle):
    records = {method: {report.SCORES[protocol]: score} for method, score in scores.items()}
    records["magic"] = {"error": "exit 1"}
    assert report.best_peer(records, protocol) == best
    assert report.margin(records, protocol) == pytest.approx(margin)
    assert report.margin(records, protocol, "spackle") == pytest.approx(over_spackle)
    assert report.margin(records, protocol, "magic") is None
    del records["lgdist"]
    assert report.margin(records, protocol) is None


def test_report_says_which_targets_are_met_and_what_is_missing(report, compare, tmp_path):
    store = compare.Store(tmp_path / "results")
    for name, protocol, seed, ours, peers in [
        ("crc16", "A", 0, 0.18, {"svd_nz": 0.20, "spackle": 0.36}),
        ("crc16", "A", 1, 0.16, {"svd_nz": 0.20, "ridge_nz": 0.30}),
        ("mob1", "A", 0, 0.19, {"svd_nz": 0.20}),
        ("mob1", "B", 0, 0.615, {"knn_eb": 0.60, "svd": 0.50}),
    ]:
        score = report.SCORES[protocol]
        mine = {score: ours, "seconds": 77.0, "source": "run", "tree": "t", "commit": "abc123"}
        theirs = {m: {score: value, "seconds": 3333.0, "source": "shared"} for m, value in peers.items()}
        store.merge(compare.Case(name, protocol, seed), {}, {"lgdist": mine, **theirs})
    failed = {"magic": {"error": "exit 1: no | luck", "seconds": 1.0, "source": "run"}}
    store.merge(compare.Case("mob1", "B", 0), {}, failed)

    arguments = ["--results", str(store.folder), "--pages", str(tmp_path / "pages")]
    report.main(arguments)
    rendered = {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    page = rendered["comparison.md"].decode()
    # 0.9 and 0.8 of the best peer's error on one set and 0.95 on the other: 0.85 and 0.95, on average 0.9
    assert "at most 0.930 of the best peer's `mse`: not met so far, reached on 1 of 2 sets" in page
    assert "at most 0.900: met so far, the mean over these sets is 0.900" in page
    assert "at least +0.0100 above the best peer's `d2`: met so far, reached on 1 of 1 sets" in page
    assert "at least +0.0200: not met so far, the mean over these sets is +0.0150" in page
    line = next(line for line in page.splitlines() if line.startswith("| tumour CRC16"))
    assert "| 0.1700 (0.1600 to 0.1800) | `svd_nz` | 0.2000 (0.2000 to 0.2000) |" in line
    assert "| **0.850 (0.800 to 0.900)** | met | 0.500 |" in line
    assert "| B | `magic` | olfactory bulb MOB1 (seed 0) | exit 1: no / luck |" in page
    assert "`abc123`" in page
    assert "| 77 |" in page
    assert "3333" not in page + rendered["comparison.csv"].decode()
    assert rendered["comparison.csv"].decode().count("\n") == 1 + 12

    report.main(arguments)
    assert rendered == {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}


def test_report_renders_before_anything_was_run(report, tmp_path):
    report.main(["--results", str(tmp_path / "results"), "--pages", str(tmp_path / "pages")])
    assert "has not been run yet" in (tmp_path / "pages" / "comparison.md").read_text()


def test_result_is_reused_as_long_as_its_source_is_the_same(compare):
    key = {"data": "d", "harness": "h", "tree": "t"}
    assert compare.is_current({"mse": 1.0, **key}, key, retry=True)
    assert not compare.is_current(None, key, retry=False)
    for name in key:
        assert not compare.is_current({"mse": 1.0, **key, name: "other"}, key, retry=False)
    dirty = {**key, "tree": "dirty"}
    assert not compare.is_current({"mse": 1.0, **dirty}, dirty, retry=False)
    failed = {"error": "exit 1", **key}
    assert compare.is_current(failed, key, retry=False)
    assert not compare.is_current(failed, key, retry=True)
    assert not compare.is_current({"error": "not installed: spared", **key}, key, retry=False)


def test_comparison_runs_what_is_not_kept_yet(benchmarks, compare, tmp_path):
    bench, section = tmp_path / "bench", tmp_path / "data" / compare.SETS["her2_c4"].files[0]
    (bench / "results").mkdir(parents=True)
    (bench / "completion.py").write_text(HARNESS)
    (bench / "methods.py").touch()
    (bench / "run_spackle.py").write_text("raise SystemExit('there is no spared')")
    command = [
        sys.executable,
        str(benchmarks / "compare.py"),
        "--shared",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--sets", "her2_c4", "--seeds", "0", "--methods", "knn_eb", "svd_nz", "ridge_nz", "median", "spackle"]
    command += ["--timeout", "5"]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)

    unready = run()
    assert unready.returncode == 1
    assert f"{section} is missing" in unready.stderr

    section.parent.mkdir(parents=True)
    section.write_bytes(b"counts")
    info = {"sha256": compare._sha256([section]), "protocol": "A", "seed": 0, "mask": "known"}
    shipped = {"info": info, "results": {"svd_nz": {"mse": 0.25, "seconds": 1.0, "peak_rss_mib": 1}}}
    (bench / "results" / "shipped.json").write_text(json.dumps(shipped))
    first = run()
    assert first.returncode == 0, first.stderr
    assert "there is no spared): pip install spared" in first.stdout
    # The peer that the harness ships is not run, and the others of a case share a start.
    assert (bench / "starts").read_text().splitlines() == ["ridge_nz,median", "knn_eb,median"]
    kept = json.loads((tmp_path / "out" / "her2_c4_A_seed0.json").read_text())["results"]
    assert kept["svd_nz"]["mse"] == 0.25
    assert kept["svd_nz"]["source"] == "shared"
    assert kept["ridge_nz"]["source"] == "run"
    assert kept["median"]["error"] == "no result within 5 s"
    assert kept["spackle"]["error"] == "not installed: there is no spared"

    again = run()
    assert "0 runs to do" in again.stdout
    assert "2 runs to do" in run("--retry").stdout
    section.write_bytes(b"other counts")
    assert "5 runs to do" in run().stdout


@pytest.fixture
def section():
    """A small section as the harness hands it out."""
    adata = simulated_tissue(n_spots=120, n_genes=24, depth=800)
    adata.X = adata.layers["counts"].copy()
    adata.layers["missing"] = (np.random.default_rng(0).random(adata.shape) < 0.1).astype(np.float32)
    adata.obs["lib"], adata.obs["slide"] = np.asarray(adata.X.sum(axis=1)).ravel(), "one"
    adata.var["eval"] = np.arange(adata.n_vars) < 8
    adata.uns |= {"protocol": "B", "seed": 0}
    return adata


@pytest.fixture
def briefly(monkeypatch):
    """One pass of training for every model, whose other options stay the defaults."""
    for phase in ("train_autoencoder", "train_diffusion"):
        monkeypatch.setattr(LGDiST, phase, partialmethod(short, getattr(LGDiST, phase)))


def short(model, phase, *_, **options):
    phase(model, **(options | {"max_epochs": 1, "accelerator": "cpu"}))


@pytest.mark.slow
def test_every_variant_of_the_ablation_runs(report, section, briefly):
    ablation, harness = (importlib.import_module(name) for name in ("ablation", "harness"))
    for name, (_, variant) in ablation.VARIANTS.items():
        completed, scale = harness.complete(section.copy(), variant)
        assert completed.shape == (120, 8) and scale == "rate", name
        assert np.isfinite(completed.to_numpy()).all() and (completed.to_numpy() >= 0).all(), name


@pytest.mark.slow
def test_calibration_of_both_kinds_of_entries(report, section, briefly):
    calibration = importlib.import_module("calibration")
    truth = {"counts": section.X[:, :8].toarray(), "lib": section.obs["lib"].to_numpy()}
    found = dict(calibration.held_out(section, truth, lambda rate, *_: {"d2": float(rate.mean())}))
    assert set(found) == set(calibration.KINDS)
    for record in found.values():
        assert record["n"] > 50 and 0 < record["coverage"]["0.5"] < record["coverage"]["0.95"] <= 1
