"""Whether completion keeps the biology: what the scores of the benchmark say of cases whose answer is known."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score


@pytest.fixture
def biology(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(benchmarks)
    return importlib.import_module("biology")


def test_bisection_finds_the_number_of_clusters(biology):
    labels = biology.bisect_resolution(lambda resolution: np.arange(200) % (1 + int(resolution * 10)), 7)
    assert len(np.unique(labels)) == 7


def test_bisection_ends_with_the_nearest_number(biology):
    # 8 clusters at resolution 2, then 3 at 1; and never 7
    labels = biology.bisect_resolution(lambda resolution: np.arange(200) % (8 if resolution > 1.5 else 3), 7, n_steps=2)
    assert len(np.unique(labels)) == 8


@pytest.fixture
def made_up() -> dict[str, np.ndarray]:
    """Counts of three genes in L1 and WM: one nearly absent from L1, one everywhere, one too rare to tell."""
    layers = np.array(["L1"] * 10 + ["WM"] * 10 + ["none"] * 5)
    depth = np.where(np.arange(25) % 2, 5_000.0, 15_000.0)
    counts = np.zeros((25, 3))
    counts[0, 0] = 10.0  # 10 against 500 counts, with the same depth in both layers
    counts[layers == "WM", 0] = 50.0
    counts[:, 1] = 20.0
    counts[12, 2] = 1.0
    counts[layers == "none"] = 1e3
    return {"counts": counts, "depth": depth, "layers": layers}


def log_values(rates: np.ndarray) -> np.ndarray:
    return np.log1p(rates * 1e4)


def test_raw_expression_is_not_over_imputed(biology, made_up):
    scores = biology.over_imputation(log_values(made_up["counts"] / made_up["depth"][:, None]), **made_up)
    assert scores["over_pairs"] == 1
    assert scores["over_mean"] == pytest.approx(0, abs=1e-12)
    assert scores["over_share"] == 0


@pytest.mark.parametrize(
    ("in_l1", "score", "share"), [(1.0, 0.98, 1), (0.3, 0.28, 1), (0.05, 0.03, 0), (0.0, -0.02, 0)]
)
def test_over_imputation_is_what_is_shown_beyond_the_counts(biology, made_up, in_l1, score, share):
    rates = np.full((25, 3), 1e-3)
    rates[made_up["layers"] == "L1"] *= in_l1
    scores = biology.over_imputation(log_values(rates), **made_up)
    assert scores["over_mean"] == scores["over_median"] == pytest.approx(score)
    assert scores["over_share"] == share


def test_auc_counts_ties_as_one_half(biology):
    generator = np.random.default_rng(0)
    values, inside = generator.poisson(1.0, 300).astype(float), generator.random(300) < 0.3
    assert biology.auc(values, inside) == pytest.approx(roc_auc_score(inside, values))
    assert biology.auc(np.zeros(300), inside) == 0.5
    assert biology.auc(inside.astype(float), inside) == 1


def test_difference_is_in_units_of_the_spread_within(biology):
    inside = np.array([True, True, False, False])
    assert biology.standardised_difference(np.array([2.0, 4.0, 0.0, 2.0]), inside) == pytest.approx(2**0.5)
    assert biology.standardised_difference(np.ones(4), inside) == 0


def test_clusters_take_the_numbers_of_their_layers(biology):
    layers = np.array([0, 0, 0, 3, 3, -1])
    assert biology.match(np.array([2, 2, 1, 0, 0, 1]), layers)[[0, 3]].tolist() == [0, 3]


def test_page_says_whether_the_target_is_met_and_what_is_missing(biology, tmp_path: Path):
    def record(**aris: float) -> dict:
        scores = {f"{recipe}_{name}": 0.5 for recipe in ("kmeans", "leiden") for name in ("nmi", "clusters")}
        over = {"over_mean": 0.1, "over_median": 0.1, "over_share": 0.2, "over_pairs": 30}
        markers = {"markers": {"MBP": {"auc": 0.75, "difference": 1.5}}}
        rows = {
            row: {"kmeans_ari": ari, "leiden_ari": ari - 0.1 * (row == "lgdist"), **scores, **over, **markers}
            for row, ari in aris.items()
        }
        return {"rows": rows, "tree": "t", "commit": "abc123"}

    store = biology.Store(tmp_path / "results")
    for case, ours in zip(biology.CASES[:4:3], (0.5, 0.6), strict=True):
        kept = {"raw": record(raw=0.45), "smooth6": record(smooth6=0.52)}
        kept["lgdist"] = record(lgdist=ours, lgdist_kept=0.51)
        store.merge(case, {}, kept)
    # Seeds are averaged within a section; what was scored on one section only is no peer on two.
    store.merge(biology.CASES[1], {}, {"lgdist": record(lgdist=0.54, lgdist_kept=0.51)})
    store.merge(biology.CASES[0], {}, {"magic": record(magic=0.9), "scvi": {"error": "exit 1: no | luck"}})

    arguments = ["--render", "--out", str(store.folder), "--pages", str(tmp_path / "pages")]
    biology.main(arguments)
    rendered = {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    assert set(rendered) == {"biology.md", "biology.csv"}
    page = rendered["biology.md"].decode()
    assert "| k-means | **`lgdist`** | 0.560 | +0.110 | `smooth6` | 0.520 | +0.040 | met so far |" in page
    assert "| k-means | **`lgdist_kept`** | 0.510 | +0.060 | `smooth6` | 0.520 | -0.010 | not met so far |" in page
    assert "| Leiden | **`lgdist`** | 0.460 | +0.010 | `smooth6` | 0.520 | -0.060 | not met so far |" in page
    assert "Met so far in 1 of 4" in page
    assert "| **`lgdist`** | 0.560 (0.520 to 0.600) | 0.500 (0.500 to 0.500) |" in page
    assert "| `scvi` | cortex 151673 | exit 1: no / luck |" in page
    assert "`abc123`" in page

    biology.main(arguments)
    assert rendered == {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}


def test_page_renders_before_anything_was_run(biology, tmp_path: Path):
    biology.main(["--render", "--out", str(tmp_path / "results"), "--pages", str(tmp_path / "pages")])
    page = (tmp_path / "pages" / "biology.md").read_text()
    assert "cannot be judged yet" in page
    assert "has not been run yet" in page
