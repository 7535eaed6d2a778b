"""Predictors of expression from images: what they learn, what they must never see, and what is said of the results."""

import importlib
import json
from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST
from lgdist_scvi.datasets import simulated_tissue

PREDICTORS = ("linear", "mlp", "transformer", "contrastive", "exemplar", "graph")
SIMPLE = ("raw", "detected", "median", "smoothed")
READ_OUTS = ("", "_kept", "_detected")
COMPLETED = tuple(f"lgdist{image}{read_out}" for image in ("", "_image") for read_out in READ_OUTS)
UNSEEN = "section_3"


@pytest.fixture
def code(benchmarks, monkeypatch):
    """The modules of the benchmark, by name; eight target genes, and no longer training than a test needs."""
    monkeypatch.syspath_prepend(benchmarks)
    names = ("prediction", "predict", "compare", "imaged")
    inner = ("sections", "targets", "folds")
    found = {name: importlib.import_module(name) for name in names}
    found |= {name: importlib.import_module(f"prediction.{name}") for name in inner}
    monkeypatch.setattr(found["targets"], "N_TARGET", 8)
    return SimpleNamespace(**found)


@pytest.fixture
def tissue():
    """Three small sections whose images tell of their domains."""
    adata = simulated_tissue(n_spots=240, n_genes=40, n_libraries=3, depth=1000)
    adata.obs["section"] = adata.obs["library_id"].astype(str)
    return adata


def learnt(code, fold, name, values, seen, seed=0):
    """Predictions of the unseen section, and the factors."""
    predicted, factors = code.folds.predictions(fold, code.predict.FITTED[name](seed=seed), values, seen)
    return predicted[UNSEEN], factors


def raw(code, fold):
    return code.targets.target("raw", fold.panel, 0, None)


def test_the_six_predictors_and_the_targets_are_those_that_are_tested(code):
    assert tuple(code.prediction.PREDICTORS) == PREDICTORS
    assert code.targets.TARGETS == SIMPLE + COMPLETED


@pytest.fixture
def planted(code, tissue):
    """Values that the image tells, up to noise; the truth of the unseen section; and sections to learn from and to ask."""
    rng = np.random.default_rng(0)
    truth = 2 + tissue.obsm["X_image"] @ rng.normal(0, 0.5, (tissue.obsm["X_image"].shape[1], 8))
    values = truth + rng.normal(0, 0.3, truth.shape)
    *known, unseen = code.folds.sections(tissue, values, np.ones(values.shape, dtype=bool))
    return SimpleNamespace(known=known, unseen=unseen, truth=truth[tissue.obs["section"] == UNSEEN])


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_learns_what_was_planted(code, planted, name, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 150)
    error, least = (
        np.square(code.predict.FITTED[which]().fit(planted.known).predict(planted.unseen) - planted.truth).mean()
        for which in (name, "mean")
    )
    assert error < 0.6 * least


@pytest.mark.parametrize("name", PREDICTORS)
def test_entries_that_the_loss_ignores_do_not_pull_towards_the_mean(code, planted, name, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 150)
    rng, amplitudes = np.random.default_rng(1), []
    for share in (1.0, 0.4):
        known = [replace(section, seen=rng.random(section.values.shape) < share) for section in planted.known]
        predictor = code.predict.FITTED[name]().fit(known)
        difference = predictor.predict(planted.unseen) - predictor.mean
        amplitudes.append((difference * (planted.truth - 2)).sum())
    assert amplitudes[1] > 0.7 * amplitudes[0]


@pytest.mark.parametrize("name", PREDICTORS)
def test_only_two_families_look_at_the_surroundings(code, planted, name, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 5)
    predictor = code.predict.FITTED[name]().fit(planted.known)
    image = planted.unseen.image.copy()
    image[0] += 1
    changed = predictor.predict(replace(planted.unseen, image=image)) != predictor.predict(planted.unseen)
    near = planted.unseen.graph[:, [0]].toarray().ravel() > 0
    assert changed[0].any()
    assert changed[near].any() == (name in ("transformer", "graph"))
    assert changed[1:].any(axis=1).all() == (name == "transformer")


@pytest.mark.parametrize("name", (*PREDICTORS, "mean"))
def test_values_that_the_loss_ignores_never_matter(code, tissue, name, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 5)
    fold = code.folds.split(tissue, [UNSEEN])
    values, _ = raw(code, fold)
    seen = np.random.default_rng(0).random(values.shape) < 0.6
    first, *others = (
        learnt(code, fold, name, np.where(seen, values, ignored), seen) for ignored in (0.0, np.nan, -1e6)
    )
    for other in others:
        np.testing.assert_array_equal(first[0], other[0])
        np.testing.assert_array_equal(first[1], other[1])
    assert np.isfinite(first[0]).all()


@pytest.mark.parametrize("name", PREDICTORS)
def test_same_seed_same_predictions(code, tissue, name, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 5)
    fold = code.folds.split(tissue, [UNSEEN])
    one, again, other = (learnt(code, fold, name, *raw(code, fold), seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (name == "linear") == np.array_equal(one, other)


def fitted(code, adata, names):
    """All that is fitted, and the predictions, of every target in `names`."""
    fold = code.folds.split(adata, [UNSEEN])
    found = {"genes": np.array(fold.genes), "context": fold.panel.var_names.to_numpy(), "means": fold.gene_means}
    completed = {}

    def complete(panel, seed, image):
        # All read-outs take one training.
        if image not in completed:
            completed[image] = code.targets.complete(panel, seed, image)
        return completed[image]

    for what in names:
        values, seen = code.targets.target(what, fold.panel, 0, complete)
        found |= {f"{what} values": values, f"{what} seen": seen}
        for predictor in code.predict.FITTED:
            predicted, factors = learnt(code, fold, predictor, values, seen)
            found |= {f"{what} {predictor}": predicted, f"{what} {predictor} factors": factors}
    return found


def with_other_counts(adata):
    """The same sections, but for the counts of the one that is never seen."""
    other, unseen = adata.copy(), (adata.obs["section"] == UNSEEN).to_numpy()
    counts = other.X.toarray()
    # Other genes at other levels, in another order of the spots.
    counts[unseen] = np.random.default_rng(1).poisson(3 * counts[unseen][::-1, ::-1] + 1)
    other.X = sparse.csr_matrix(counts)
    other.layers["counts"] = other.X.copy()
    return other


def assert_no_leak(code, tissue, names):
    one, other = (fitted(code, adata, names) for adata in (tissue, with_other_counts(tissue)))
    for what, value in one.items():
        np.testing.assert_array_equal(value, other[what], err_msg=what)


def test_counts_of_the_unseen_section_change_nothing(code, tissue, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 5)
    assert_no_leak(code, tissue, SIMPLE)


@pytest.mark.slow
def test_counts_of_the_unseen_section_change_no_completion(code, tissue, monkeypatch):
    monkeypatch.setattr(code.sections, "N_STEPS", 5)
    monkeypatch.setattr("lgdist_scvi.model._lgdist.MOST_FACTORS", 4)
    for phase in ("train_autoencoder", "train_diffusion"):
        monkeypatch.setattr(LGDiST, phase, partialmethod(short, getattr(LGDiST, phase)))
    assert_no_leak(code, tissue, COMPLETED)


def short(model, phase, *_, **options):
    phase(model, **(options | {"max_epochs": 1, "accelerator": "cpu"}))


def test_sections_of_the_training_are_retrieved_from_the_others(code, tissue, monkeypatch):
    """Or the factors would be those of values that were looked up."""
    monkeypatch.setattr(code.sections, "N_STEPS", 2)
    fold = code.folds.split(tissue, [UNSEEN])
    first, second = code.folds.sections(fold.panel, *raw(code, fold))
    first = replace(first, values=np.zeros_like(first.values))
    second = replace(second, values=np.ones_like(second.values))
    predictor = code.prediction.PREDICTORS["contrastive"]().fit([first, second])
    np.testing.assert_allclose(predictor.predict(first), 1, atol=1e-6)
    np.testing.assert_allclose(predictor.predict(second), 0, atol=1e-6)
    exemplars = code.predict.FITTED["exemplar"]().fit([first, second]).network.found
    own = second.values[0, 0] - 0.5
    assert (exemplars[first.name][1].numpy() == own).all() and (exemplars[second.name][1].numpy() == -own).all()


def test_adaptive_median(code):
    chain = sparse.diags([np.ones(7), np.ones(7)], [-1, 1], format="csr")
    genes = {
        # The first spot: 2 between 0 and 4. No other window of up to four hops has a median above 0: 5, that of 4 and 6.
        (0, 4, 6, 0, 0, 0, 0, 0): (2, 4, 6, 5, 5, 5, 5, 5),
        # 1.5 among 0, 0, 3, 3 after three hops and two; among three zeros and three 3 after three and four; the last 3.
        (0, 0, 3, 3, 3, 0, 0, 0): (1.5, 1.5, 3, 3, 3, 1.5, 1.5, 3),
        (0, 0, 0, 0, 0, 0, 0, 0): (0, 0, 0, 0, 0, 0, 0, 0),
    }
    given, expected = (np.array(list(values), dtype=float).T for values in (genes.keys(), genes.values()))
    np.testing.assert_allclose(code.targets.adaptive_median(given, chain), expected)


def test_smoothing_takes_the_spot_itself_along(code):
    chain = sparse.diags([np.ones(2), np.ones(2)], [-1, 1], format="csr")
    np.testing.assert_allclose(code.targets.smooth(np.array([[0.0], [3.0], [6.0]]), chain), [[1.5], [3.0], [4.5]])


def test_detected_target_hides_zeros(code, tissue):
    panel = code.folds.split(tissue, [UNSEEN]).panel
    values, seen = code.targets.target("detected", panel, 0, None)
    counts = code.targets.measured(panel, code.targets.target_genes(panel))
    np.testing.assert_array_equal(seen, counts > 0)
    assert np.isnan(values[~seen]).all() and (values[seen] > 0).all()


def test_factors_match_the_counts_of_the_training_and_the_mean_explains_nothing(code, tissue):
    fold = code.folds.split(tissue, [UNSEEN])
    truth = tissue[tissue.obs["section"] == UNSEEN]
    counts, depth = code.targets.measured(truth, fold.genes), np.asarray(truth.X.sum(axis=1)).ravel()
    for what in SIMPLE:
        values, seen = code.targets.target(what, fold.panel, 0, None)
        predicted, factors = learnt(code, fold, "mean", values, seen)
        expected = code.folds.rates(predicted[:1]) * factors * fold.depth[:, None]
        np.testing.assert_allclose(expected.sum(axis=0), fold.counts.sum(axis=0))
        scores = code.folds.scores(predicted, factors, fold, counts, depth)
        assert (scores["d2"], scores["pearson"]) == pytest.approx((0, 0), abs=1e-9)
    perfect = code.targets.log_values(counts, depth)
    scores = code.folds.scores(perfect, np.ones(len(fold.genes)), fold, counts, depth)
    assert scores["mse"] == 0 and scores["pearson"] == pytest.approx(1) and scores["d2"] > 0.99
    # Zeros count in d2 only.
    filled = code.folds.scores(np.where(counts > 0, perfect, 5.0), np.ones(len(fold.genes)), fold, counts, depth)
    assert filled["mse"] == 0 and filled["d2"] < scores["d2"]


def test_completions_are_kept(code, tissue, tmp_path, monkeypatch):
    calls = []

    def complete(panel, seed, image):
        calls.append((seed, image))
        return {"expected": np.full((2, 2), seed), "detected": np.ones((2, 2)), "kept": np.zeros((2, 2))}

    monkeypatch.setattr(code.targets, "complete", complete)
    panel = code.folds.split(tissue, [UNSEEN]).panel
    for given in ((panel, 0, False), (panel, 0, True), (panel, 1, False), (panel, 0, False)):
        kept = code.targets.Kept(tmp_path, "v1")(*given)
        assert kept["expected"][0, 0] == given[1] and kept["detected"][0, 0] == 1
    assert calls == [(0, False), (0, True), (1, False)]
    code.targets.Kept(tmp_path, "v2")(panel, 0, False)
    other = panel.copy()
    other.obsm["X_image"] = other.obsm["X_image"] + 1
    code.targets.Kept(tmp_path, "v1")(other, 0, False)  # no image, no difference
    code.targets.Kept(tmp_path, "v1")(other, 0, True)
    other.X[0, 0] += 1
    code.targets.Kept(tmp_path, "v1")(other, 0, False)
    assert calls[3:] == [(0, False), (0, True), (0, False)]


def test_results_are_kept_and_reused(code, tissue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(code.sections, "N_STEPS", 2)
    monkeypatch.setattr(code.predict, "sections", lambda *_: tissue)
    monkeypatch.setitem(code.predict.FOLDS, "her2", {"third": (UNSEEN,)})
    monkeypatch.setattr(code.predict, "_sha256", lambda _: "data")
    key = {"tree": "t", "recipe": "r", "reading": "i"}
    monkeypatch.setattr(code.predict, "Code", lambda **_: SimpleNamespace(changed=False, key=key, commit="abc123"))
    options = [
        "--sets",
        "her2",
        "--seeds",
        "0",
        "--targets",
        "raw",
        "median",
        "--predictors",
        "linear",
        "graph",
        "mean",
    ]
    options += ["--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md"), "--cache", str(tmp_path / "cache")]
    code.predict.main(options)
    assert capsys.readouterr().out.count("mse") == 6
    kept = json.loads((tmp_path / "out" / "her2_third_seed0.json").read_text())["results"]
    assert set(kept) == {f"{p} {what}" for p in ("linear", "graph", "mean") for what in ("raw", "median")}
    assert set(kept["linear raw"]["sections"][UNSEEN]) == {"mse", "pearson", "d2"}
    assert kept["mean raw"]["sections"][UNSEEN]["d2"] == 0
    code.predict.main(options)
    assert "mse" not in capsys.readouterr().out
    key["recipe"] = "other"
    code.predict.main(options)
    assert capsys.readouterr().out.count("mse") == 6


def kept_scores(code, store, score, seeds=(0, 1, 2)):
    """Records of all runs, with the scores that `score` gives."""
    for name, folds in code.predict.FOLDS.items():
        for fold, test in folds.items():
            for seed in seeds:
                records = {
                    f"{predictor} {what}": {
                        "sections": {section: score(name, predictor, what, seed) for section in test},
                        "tree": "t",
                        "commit": "abc123",
                    }
                    for predictor in code.predict.FITTED
                    for what in code.targets.TARGETS
                }
                store.merge(code.compare.Case(name, fold, seed), {}, records)


def rendered(code, store, tmp_path):
    path = tmp_path / "prediction.md"
    code.predict.main(["--render", "--out", str(store.folder), "--page", str(path)])
    return path.read_text()


def test_page_says_whether_the_goal_is_met(code, tmp_path):
    def score(name, predictor, what, seed):
        mse, pearson, d2 = 1.0 + 0.1 * seed, 0.5, 0.20
        if what == "lgdist":
            mse, pearson = mse * 0.94, 0.6
            # In the olfactory bulb completion is worth nothing where zeros count; elsewhere for all predictors but one.
            d2 += -0.05 if name == "mob" else 0.01 if predictor != "graph" else 0.0
        if what == "lgdist_detected":
            mse, pearson, d2 = mse * 0.5, 0.7, 0.1
        if what == "lgdist_image":
            mse, pearson, d2 = mse * 0.96, 0.6, 0.3
        return {"mse": mse, "pearson": pearson, "d2": d2}

    store = code.compare.Store(tmp_path / "results")
    kept_scores(code, store, score)
    page = rendered(code, store, tmp_path)
    breast, bulb = "breast tumour C2 to C6", "olfactory bulb MOB1 to MOB4"
    both = "`lgdist_detected`, in `d2` `lgdist`"
    assert f"it is met by `lgdist` on {breast}; {both} on {breast}." in page
    places = (breast, bulb, "both sets")
    published = "; ".join(f"{what} on {place}" for place in places for what in ("`lgdist`", "`lgdist_detected`", both))
    assert f"It is met by {published}." in page
    assert "so far" not in page and "24 combinations" in page
    for row in (
        f"{breast} | `lgdist` | 6 | 6 | 5 | 6 | 5 | -6.0% | -6.0%",
        f"{breast} | {both} | 6 | 6 | 5 | 6 | 5 | -50.0% | -50.0%",
        f"{bulb} | `lgdist` | 6 | 6 | 0 | 6 | 0 | -6.0% | -6.0%",
        "both sets | `lgdist_detected` | 6 | 6 | 0 | 6 | 0 | -50.0% | -50.0%",
        "both sets | `lgdist_image` | 6 | 6 | 6 | 6 | 6 | -4.0% | -4.0%",
        "both sets | `lgdist_kept` | 0 | 0 | 0 | 0 | 0 | +0.0% | +0.0%",
    ):
        assert f"| {row} |" in page
    assert f"- {breast}, `lgdist`: an advantage over `raw`, +0.008 on average and better in 75 of 90 pairs" in page
    assert f"- {bulb}, `lgdist`: no advantage over `raw`, -0.050 on average and better in 0 of 72 pairs" in page
    assert (
        f"- {bulb}, `lgdist_detected`: an advantage over `raw`, -50.0% on average and better in 72 of 72 pairs; "
        "the hardest to beat of the others is `raw` (-50.0%, 72 of 72)." in page
    )
    # 1.0, 1.1 and 1.2, of each of five sections
    assert "| `raw` | 1.100 (1.000 to 1.200) |" in page
    assert "| `lgdist` | `raw` | -6.0% (-6.0% to -6.0%), 15/15 |" in page
    assert "| `lgdist_image` | `median` | +0.100 (+0.100 to +0.100), 12/12 |" in page
    assert "`abc123`" in page
    assert page == rendered(code, store, tmp_path)


def test_page_of_what_was_run_so_far(code, tmp_path):
    store = code.compare.Store(tmp_path / "results")
    assert "The goal cannot be judged yet." in rendered(code, store, tmp_path)
    kept_scores(code, store, lambda *_: {"mse": 1.0, "pearson": 0.5, "d2": 0.2}, seeds=(0,))
    page = rendered(code, store, tmp_path)
    assert "It is not met so far. With" in page and "it is not met so far." in page
    assert "no advantage over `raw` so far" in page
