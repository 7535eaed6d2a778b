"""The comparison with other methods: what is kept of it, and what is said of the results."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from types import ModuleType, SimpleNamespace

import anndata
import numpy as np
import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

# Stands in for the shared harness: every method gets the same score, and each start leaves a line.
HARNESS = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("name", "protocol", "seed", "data", "out", "methods", "external", "timeout", "threads", "frac"):
    parser.add_argument("--" + name, default="")
o = parser.parse_args()
with open(pathlib.Path(__file__).with_name("starts"), "a") as file:
    file.write(" ".join(filter(None, (o.methods or o.external, o.frac))) + "\\n")
names = (o.methods or o.external.partition("=")[0]).split(",")
results = {name: {"mse": 0.5, "d2": 0.1, "seconds": 1.0, "peak_rss_mib": 1} for name in names}
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


@pytest.fixture
def scoring(report: ModuleType) -> ModuleType:
    return importlib.import_module("scoring")


@pytest.fixture
def harness(scoring: ModuleType, tmp_path: Path):
    """A harness with the data of one section, and an environment each for STARK, for a classical peer and for nothing."""
    shared = tmp_path / "shared"
    section = shared / "data" / scoring.SETS["mob1"].files[0]
    own = [tmp_path / "own" / peer / "bin" / "python" for peer in ("stark", "knn_eb")]
    scripts = [shared / "bench" / name for name in ("completion.py", "methods.py", "run_spackle.py")]
    for file in (section, *own, *scripts):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    scripts[0].write_text(HARNESS)
    (tmp_path / "own" / "nest").mkdir()
    return scoring.Harness(shared, sys.executable, tmp_path / "own", 60, 1, tmp_path)


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
    page = rendered["all_results.md"].decode()
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
    assert "3333" not in page + rendered["all_results.csv"].decode()
    assert rendered["all_results.csv"].decode().count("\n") == 1 + 12

    report.main(arguments)
    assert rendered == {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}


def test_report_renders_before_anything_was_run(report, tmp_path):
    report.main(["--results", str(tmp_path / "results"), "--pages", str(tmp_path / "pages")])
    assert "has not been run yet" in (tmp_path / "pages" / "all_results.md").read_text()


def test_pages_for_readers_say_what_is_kept(report, benchmarks, tmp_path):
    overview = importlib.import_module("overview")
    overview.main(["--pages", str(tmp_path)])
    kept = benchmarks.parent / "docs" / "benchmarks"
    assert (tmp_path / "comparison.md").read_text() == (kept / "comparison.md").read_text()
    # Names and numbers of the figure, which Matplotlib repeats in comments.
    drawn, stored = (
        re.findall("<!-- (.+?) -->", (folder / "comparison.svg").read_text()) for folder in (tmp_path, kept)
    )
    assert "LGDiST" in drawn
    assert drawn == stored
    store = overview.Store(report.RESULTS)
    results = {case: store.load(case)["results"] for case in overview.CASES}
    rows = overview.short(overview.questions(results, report.RESULTS), report.RESULTS)
    for page in overview.WITH_TABLE:
        text = page.read_text()
        assert overview.with_table(text, rows) == text, f"{page.name} is not up to date; run benchmarks/overview.py"


def test_methods_are_averaged_over_the_same_sets(report):
    overview = importlib.import_module("overview")
    case = report.Case
    results = {
        case("mob1", "B", 0): {"lgdist": {"d2": 0.6}, "knn_eb": {"d2": 0.5}, "scvi": {"d2": 0.9}},
        case("mob1", "B", 1): {"lgdist": {"d2": 0.4}, "knn_eb": {"d2": 0.5}},
        case("crc16", "B", 0): {"lgdist": {"d2": 0.2}, "knn_eb": {"d2": 0.1}},
        case("crc16", "A", 0): {"lgdist": {"mse": 9.0}},
    }
    # scVI has no score on one of the sets, where all are lower.
    assert overview.averaged(results, "B", ["mob1", "crc16"]) == pytest.approx({"lgdist": 0.35, "knn_eb": 0.3})
    assert overview.leads([{"lgdist": 0.5, "a": 0.4, "b": 0.7}]) == pytest.approx([-0.2])


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


def test_comparison_runs_what_is_not_kept_yet(benchmarks, compare, scoring, tmp_path):
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
    info = {"sha256": scoring._sha256([section]), "protocol": "A", "seed": 0, "mask": "known"}
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


@pytest.mark.parametrize(
    ("arguments", "names", "n_cases"),
    [
        ([], "dense", 2 * (5 * 3 + 7)),
        (["--quick"], "quick", 2 * 5),
        (["--sets", "sparse"], "sparse", 3 * (2 * 6 + 2 * 5)),
        (["--sets", "sparse", "quick", "mob1"], "sparse quick", 3 * (2 * 6 + 2 * 5 + 2 * 5)),
        (["--sets", "mob1_5pct", "--seeds", "1"], "mob1_5pct", 1),
    ],
)
def test_sets_are_chosen_by_their_names_or_by_those_of_groups(compare, arguments, names, n_cases):
    cases = compare.chosen(compare.parse(arguments))
    assert {case.name for case in cases} == compare.in_sets(names.split())
    assert len(cases) == n_cases
    assert len({case.file for case in cases}) == n_cases


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mob1", ""),
        ("slideseq", "--min-umi 10 --min-det 0.005"),
        ("osmfish", "--min-umi 20 --min-det 0.01"),
        ("starmap", "--min-umi 50 --min-det 0.02"),
        ("crc16_5pct", "--frac 0.05"),
        ("crc16_20pct", "--frac 0.2"),
    ],
)
def test_sparse_sets_have_arguments_of_their_own(scoring, name, arguments):
    assert " ".join(scoring.SETS[name].arguments) == arguments


def test_arguments_and_driver_are_part_of_what_keeps_a_result_current(compare, scoring, harness, tmp_path, monkeypatch):
    whole, thinned = (compare.Case(name, "B", 0) for name in ("mob1", "mob1_5pct"))
    key, other = harness.key_of(whole, "knn_eb"), harness.key_of(thinned, "knn_eb")
    # One that was kept before there were arguments stays as it is.
    kept = {"d2": 0.5, "data": key["data"], "harness": key["harness"]}
    assert compare.is_current(kept, key, retry=False)
    assert not compare.is_current(kept, other, retry=False)
    assert compare.is_current({"d2": 0.5, **other}, other, retry=False)
    assert not compare.is_current({"d2": 0.5, **other}, key, retry=False)

    monkeypatch.setattr(scoring, "DRIVERS", tmp_path)
    for file in ("contract.py", "run_stark.py"):
        (tmp_path / file).write_text("first")
    first = harness.key_of(whole, "stark")
    (tmp_path / "run_stark.py").write_text("second")
    assert not compare.is_current({"d2": 0.5, **first}, harness.key_of(whole, "stark"), retry=False)
    assert key == harness.key_of(whole, "knn_eb")


def test_a_peer_runs_in_its_own_environment_if_there_is_one(scoring, harness, tmp_path):
    assert harness.python("stark") == str(tmp_path / "own" / "stark" / "bin" / "python")
    # A folder without an interpreter is none, and the classical peers share a start and so an environment.
    assert harness.python("nest") == harness.python("knn_eb") == harness.python("scvi") == sys.executable
    harness.peers_folder = None
    assert harness.python("stark") == sys.executable


def test_every_peer_can_be_asked_for_and_has_instructions(compare, scoring, benchmarks):
    for peer in scoring.ALONE:
        assert peer in scoring.INSTALL
        assert all(peer in peers for peers in compare.PEERS.values())
    drivers = {path.stem.removeprefix("run_") for path in (benchmarks / "peers").glob("run_*.py")}
    assert drivers == set(scoring.DRIVEN)
    assert "spatial_factors_eb" in compare.PEERS["B"] and "spatial_factors_eb" not in compare.PEERS["A"]


def test_comparison_passes_arguments_and_environments_on(compare, scoring, harness, tmp_path, capfd):
    # What the harness ships of the section is from all of its molecules.
    info = {"sha256": harness.data_key("mob1"), "protocol": "B", "seed": 0, "mask": None}
    (harness.bench / "results").mkdir()
    shipped = {"info": info, "results": {"median": {"d2": 0.9, "seconds": 1.0}, "knn_eb": {"d2": 0.9, "seconds": 1.0}}}
    (harness.bench / "results" / "shipped.json").write_text(json.dumps(shipped))
    arguments = ["--sets", "mob1_5pct", "--seeds", "0", "--methods", "knn_eb", "stark", "nest"]
    arguments += ["--out", str(tmp_path / "out"), "--shared", str(tmp_path / "shared")]
    arguments += ["--peers-folder", str(tmp_path / "own")]
    compare.main(arguments)

    starts = (harness.bench / "starts").read_text().splitlines()
    python, script = tmp_path / "own" / "stark" / "bin" / "python", scoring.DRIVERS / "run_stark.py"
    assert starts == ["knn_eb 0.05", f"stark={python} {script} {{input}} {{output}} 0.05"]
    kept = json.loads((tmp_path / "out" / "mob1_5pct_B_seed0.json").read_text())["results"]
    assert kept["knn_eb"]["d2"] == 0.1
    assert kept["stark"]["arguments"] == "--frac 0.05"
    assert kept["nest"]["error"] == "not installed: ModuleNotFoundError: No module named 'nest_st'"
    assert f"{sys.executable} cannot run the nest peer" in capfd.readouterr().out


def test_report_has_a_part_for_sparse_sets_once_there_are_results(report, compare, tmp_path):
    store = compare.Store(tmp_path / "results")
    ours = {"d2": 0.6, "seconds": 7.0, "source": "run", "tree": "t", "commit": "abc123"}
    theirs = {"d2": 0.4, "seconds": 1.0, "source": "run"}
    arguments = ["--results", str(store.folder), "--pages", str(tmp_path / "pages")]
    pages = []
    for name in ("mob1", "mob1_5pct"):
        store.merge(compare.Case(name, "B", 0), {}, {"lgdist": ours, "knn_eb": theirs})
        report.main(arguments)
        pages.append((tmp_path / "pages" / "all_results.md").read_text())
    assert "Sparse data" not in pages[0] and "of its molecules" not in pages[0]
    after = pages[1].partition("## Sparse data")[2]
    assert "| olfactory bulb MOB1, 5% of its molecules | 0.6000 | `knn_eb` | 0.4000 | **+0.2000**" in after
    # The targets are about the dense sets, and a sparse set that nothing was run on is not said to be missing.
    assert "reached on 1 of 1 sets with results (12 in all)" in pages[1]
    assert "Slide-seq" not in pages[1]


def fakes(section: anndata.AnnData, called: list) -> dict[str, ModuleType]:
    """Packages that give back what they are given, and note the seed and whether slides are kept apart."""

    def note(adata, seed=7):
        first = np.asarray(section.obs["slide"] == "one")
        places = adata.obsm["spatial"]
        called.append((seed, places[first, 0].max() < places[~first, 0].min(), adata.shape == section.shape))
        return adata

    def train_stagate(adata, *, random_seed, save_reconstrction, device):
        adata.layers["STAGATE_ReX"] = note(adata, random_seed).X
        return adata

    class GraphST:
        def __init__(self, adata, random_seed):
            assert adata.X.std(axis=0, ddof=1)[adata.X.any(axis=0)].max() < 1.001
            self.adata = note(adata, random_seed)

        def train(self):
            self.adata.obsm["emb"] = self.adata.X
            return self.adata

    packages = {
        "nest_st": {"reconstruct": lambda adata, *, mode, device, random_state: note(adata, random_state)},
        "STAGATE_pyG": {"Cal_Spatial_Net": lambda adata, **_: None, "train_STAGATE": train_stagate},
        "GraphST": {},
        "GraphST.GraphST": {"GraphST": GraphST},
        # Shares of the panel and its depth.
        "stark": {"stark_denoise": lambda adata, depth, **_: {"denoised_matrix": note(adata).X * (depth[:, None] > 0)}},
    }
    return {name: SimpleNamespace(**content) for name, content in packages.items()}


@pytest.mark.parametrize(
    ("peer", "space"), [("graphst", "log"), ("nest", "log"), ("stagate", "log"), ("stark", "rate")]
)
def test_driver_gives_its_package_the_panel_and_the_harness_the_scored_genes(
    benchmarks, section, tmp_path, monkeypatch, peer, space
):
    section.obs["slide"] = np.where(np.arange(section.n_obs) % 2, "two", "one")
    # Half of the molecules are of genes outside the panel, one spot has none in it and one gene none at all.
    counts = section.X.toarray()
    counts[0], counts[:, 0] = 0, 0
    lib = 2 * counts.sum(axis=1) + 1
    section.X, section.obs["lib"], section.uns["seed"] = type(section.X)(counts), lib, 7
    rate = counts / lib[:, None]
    section.layers["lognorm"] = np.log1p(1e4 * rate).astype(np.float32)
    section.write_h5ad(tmp_path / "input.h5ad")

    called: list = []
    for name, module in fakes(section, called).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "contract", raising=False)
    monkeypatch.syspath_prepend(benchmarks / "peers")
    script = benchmarks / "peers" / f"run_{peer}.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "input.h5ad"), str(tmp_path / "output.h5ad")])
    runpy.run_path(str(script), run_name="__main__")

    assert called == [(7, True, True)]
    output = anndata.read_h5ad(tmp_path / "output.h5ad")
    assert output.uns["space"] == space
    assert list(output.obs_names) == list(section.obs_names)
    assert list(output.var_names) == list(section.var_names[section.var["eval"]])
    expected = rate if space == "rate" else section.layers["lognorm"]
    np.testing.assert_allclose(output.X, expected[:, section.var["eval"]], rtol=1e-5, atol=1e-7)


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
    monkeypatch.setattr("lgdist_scvi.model._lgdist.MOST_FACTORS", 4)
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


def test_sums_over_genes_share_the_molecules_of_a_spot(report):
    verdict, random = importlib.import_module("sums").verdict, np.random.default_rng(0)
    total = np.full(4000, 100.0)
    share = 0.6 + 0.05 * random.standard_normal(4000)
    seen, around = random.binomial(100, share), 60 + 5 * random.standard_normal((200, 4000))
    found = verdict(seen, np.full(4000, 60.0), around, [0.8], random, total)
    assert found["excess"] == pytest.approx(1, rel=0.1) and found["coverage"]["0.8"] == pytest.approx(0.8, abs=0.01)
    assert verdict(seen, np.full(4000, 60.0), around, [0.8], random)["excess"] < 0.5


@pytest.mark.parametrize(("width", "best"), [(0.3, False), (1.0, True), (3.0, False)])
def test_joint_scores_prefer_samples_of_the_true_spread(report, width, best):
    hidden, random = importlib.import_module("hidden"), np.random.default_rng(0)
    # A factor that all genes share, as a part of the mean.
    mean = np.full((60, 12), 20.0)
    counts = random.poisson(mean * np.exp(0.4 * random.standard_normal((60, 1))))
    sets = [np.arange(4), np.arange(12)]

    def scored(width):
        return hidden.joint(counts, mean * np.exp(0.4 * width * random.standard_normal((400, 60, 1))), sets, 0)

    found, right = scored(width), scored(1.0)
    for score in ("energy", "log", "crps"):
        assert (found[score] < right[score] * 1.01) == best, score
    # A normal distribution fitted to errors like these is as good as the truth.
    fitted = hidden.joint(counts, hidden.gaussian([(counts[:30], mean[:30])], mean, 0), sets, 0)
    assert fitted["log"] == pytest.approx(right["log"], abs=0.5) and abs(right["coverage"] - 0.95) < 0.06


@pytest.mark.parametrize("claimed", [0.5, 1.0, 2.0])
def test_sums_that_are_too_certain_are_seen(report, claimed):
    """Errors of a known spread, of which samples claim a part or more."""
    verdict, random = importlib.import_module("sums").verdict, np.random.default_rng(0)
    mean, noise = np.full(4000, 40.0), 8.0
    seen = random.poisson(mean + noise * random.standard_normal(4000))
    around = mean + claimed * noise * random.standard_normal((200, 4000))
    found = verdict(seen, mean, around, [0.8], random)
    assert found["excess"] == pytest.approx(1 / claimed**2, rel=0.1)
    off = found["coverage"]["0.8"] - 0.8
    assert abs(off) < 0.02 if claimed == 1 else off * (claimed - 1) > 0.02


@pytest.mark.slow
def test_calibration_of_both_kinds_of_entries(report, section, briefly):
    calibration = importlib.import_module("calibration")
    truth = {"counts": section.X[:, :8].toarray(), "lib": section.obs["lib"].to_numpy()}
    found = dict(calibration.held_out(section, truth, lambda rate, *_: {"d2": float(rate.mean())}))
    sums = found.pop(calibration.SUMS)["kinds"]
    assert list(sums) == [
        "7 neighbouring spots",
        "19 neighbouring spots",
        "50 neighbouring spots",
        "20 genes of a spot",
    ]
    assert all(0 <= one["coverage"]["0.95"] <= 1 and one["n"] > 0 for one in sums.values())
    assert set(found) == set(calibration.KINDS)
    for record in found.values():
        assert record["n"] > 50 and 0 < record["coverage"]["0.5"] < record["coverage"]["0.95"] <= 1


@pytest.fixture
def audited(report):
    return importlib.import_module("audit")


def test_audit_of_methods_says_what_is_not_as_it_should_be(audited, compare, tmp_path):
    def answers(*found):
        return {
            "commit": "abc123",
            "answers": [dict(zip(("question", "value", "fine"), one, strict=True)) for one in found],
        }

    store = compare.Store(tmp_path / "audit")
    for seed, slope in enumerate((1.0, 1.5)):
        totals = [("totals", 0.98 + 0.01 * seed, True), ("totals", 1.01, True)]
        null = [("null tests", 0.06, True), ("null tests", 0.2, None)]  # that of the counts is not shown
        records = {
            "raw": answers(*totals, *null, ("correlations", slope, seed == 0), ("coverage", None, None)),
            "magic": {"commit": "abc123", "error": "not installed: no module"},
            "lgdist": answers(("coverage", 0.5, True), ("coverage", 0.95, True)),
        }
        store.merge(compare.Case("mob1", "audit", seed), {"spots": 379}, records)
    audited.main(["--render", "--out", str(store.folder), "--pages", str(tmp_path)])
    page = (tmp_path / "audit.md").read_text()
    assert "## Olfactory bulb MOB1, 379 spots" in page and "Commits: `abc123`." in page
    assert "| raw counts | 2 | 0.98 to 1.01 |  |  |  | 6 (6 to 6) | **1.25 (1.00 to 1.50)** |  |" in page
    assert "| LGDiST | 2 |  |  |  |  |  |  | 50 (50 to 50), 95 (95 to 95) |" in page
    assert "Not audited: MAGIC: not installed: no module." in page


@pytest.mark.slow
def test_methods_are_audited_without_what_is_held_out(audited, section, briefly, harness, monkeypatch):
    section.var["panel"] = True
    section.uns["target_sum"] = 1e4
    monkeypatch.setattr(audited, "N_DECOYS", 6)
    completion = SimpleNamespace(
        load=lambda paths, **_: section, lognorm=lambda counts, lib, target: np.log1p(counts / lib[:, None] * target)
    )
    given = audited.prepared("mob1", 0, completion, [Path("none")])
    assert given.shape == (120, 30) and given.var["eval"].all()

    def call(command, *_):
        assert command[1].endswith("methods.py") and command[2] == "magic"
        visible = anndata.read_h5ad(command[3])
        assert set(visible.layers) == {"missing", "lognorm"} and visible.X.sum() == given.X.sum()
        # A method may go below zero in the log.
        anndata.AnnData(visible.layers["lognorm"] - 0.01, uns={"space": "log"}).write_h5ad(command[4])
        return 0, ""

    monkeypatch.setattr(harness, "call", call)
    made = {
        name: one
        for method in ("raw", "magic", "lgdist")
        for name, one in audited.completed(method, given, harness).items()
    }
    assert list(made) == ["raw", "magic", "lgdist", "lgdist_kept"]
    found = {name: audited.answers(given, one, 0) for name, one in made.items()}
    for name, answers in found.items():
        assert {one["question"] for one in answers} == set(audited.COLUMNS), name
        covered = [one["value"] for one in answers if one["question"] == "coverage"]
        assert (covered[0] is not None) == (name == "lgdist")
    assert [one["value"] for one in found["raw"]][0] == pytest.approx(1, abs=1e-3)
    monkeypatch.setattr(harness, "call", lambda *_: (1, "out of luck"))
    assert audited.completed("magic", given, harness) == "out of luck"
