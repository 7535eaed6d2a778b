"""Means of regions with their errors, and calls of genes."""

import numpy as np
import pytest
from scipy import stats

from lgdist_scvi.model import _region_sums
from lgdist_scvi.model._region_sums import AreaMeans, AreaSums, Inflation, _fitted, combined
from lgdist_scvi.model._regions import intervals, unseen

QUIET = {"silent": True}
GENES = ["gene_3", "gene_1", "gene_8"]


@pytest.fixture(scope="module")
def regions(trained):
    trained.adata.obs["region"] = np.where(
        np.arange(trained.adata.n_obs) % 7 == 0, None, trained.adata.obs["domain"].astype(str)
    )
    return trained.get_region_expression(groupby="region", gene_list=GENES, **QUIET)


def test_means_of_completed_values_and_of_counts(trained, regions):
    adata, (_, view) = trained.adata, trained._trained_view(None, diffusion=False)
    completed = trained.get_completed_expression(scale="rate", return_numpy=True, gene_list=GENES, **QUIET)
    counts, seen = adata[:, GENES].layers["counts"].toarray(), adata[:, GENES].layers["observed"]
    assert list(regions.var_names) == GENES and list(regions.obs_names) == sorted(set(adata.obs["region"].dropna()))
    for number, region in enumerate(regions.obs_names):
        spots = (adata.obs["region"] == region).to_numpy()
        depth = view.depth[spots, None].astype(float)
        assert regions.obs["n_spots"].iloc[number] == spots.sum()
        assert regions.obs["depth"].iloc[number] == pytest.approx(depth.sum(), rel=1e-5)
        expected = (completed[spots] * depth).sum(axis=0) / depth.sum() * 1e4
        np.testing.assert_allclose(regions.layers["completed"][number], expected, rtol=1e-4)
        # Hidden counts are none.
        raw = (counts * seen)[spots].sum(axis=0) / (seen[spots] * depth).sum(axis=0) * 1e4
        np.testing.assert_allclose(regions.layers["raw"][number], raw, rtol=1e-4)
    between = np.sort([regions.layers["raw"], regions.layers["completed"]], axis=0)
    assert (between[0] * 0.999 <= regions.X).all() and (regions.X <= between[1] * 1.001).all()
    assert (regions.layers["low"] < regions.X).all() and (regions.X < regions.layers["high"]).all()


def test_claimed_variance_is_that_of_the_samples(trained):
    """Regions of one spot and of many, against the sums of full samples."""
    adata, view = trained._trained_view(None, diffusion=False)
    from scipy import sparse

    from lgdist_scvi.model._options import Reading
    from lgdist_scvi.model._reader import Reader

    members = sparse.csr_matrix(np.stack([np.arange(150) == 4, np.arange(150) < 60]).astype(np.float32))
    reader = Reader(trained.module, view, Reading(n_samples=0, scale="rate"), _region_sums.N_DRAWS)
    sums = _region_sums.area_sums(reader, view, members, np.arange(view.n_genes), silent=True)
    samples = trained.sample_expression(n_samples=800, seed=3, **QUIET).astype(float)
    depth = view.depth.astype(float)
    for number, spots in enumerate((np.array([4]), np.arange(60))):
        means = samples[:, spots].transpose(0, 2, 1) @ depth[spots] / depth[spots].sum()
        ratio = sums.variance[number] / means.var(axis=0)
        assert np.exp(np.log(ratio).mean()) == pytest.approx(1, abs=0.15)


def test_sums_do_not_depend_on_how_they_are_cut(trained, regions, monkeypatch):
    monkeypatch.setattr(_region_sums, "SUM_BYTES", 1)
    again = trained.get_region_expression(groupby="region", gene_list=GENES, batch_size=17, **QUIET)
    np.testing.assert_allclose(again.X, regions.X, rtol=1e-4)
    np.testing.assert_allclose(again.layers["std"], regions.layers["std"], rtol=1e-3)


def test_patches_around_spots(trained):
    around = trained.get_region_expression(n_spots=1, gene_list=GENES, **QUIET)
    assert list(around.obs_names) == list(trained.adata.obs_names)
    completed = trained.get_completed_expression(scale="rate", return_numpy=True, gene_list=GENES, **QUIET)
    np.testing.assert_allclose(around.layers["completed"], completed * 1e4, rtol=1e-4)


def one_area(mean=1e-3, variance=1e-8, counts=15, exposure=1e4):
    return AreaSums(*(np.full((1, 1), float(value)) for value in (exposure, counts, exposure, mean, variance)))


def test_combined_means(monkeypatch):
    monkeypatch.setattr(_region_sums, "_OF_AREA", [0.0])
    sums = one_area()
    noise = 1e-3 / 1e4
    same = combined(sums, np.ones((1, 1)))
    assert same.mean[0, 0] == pytest.approx(1e-3) and same.variance[0, 0] == pytest.approx(1e-8)
    far = combined(sums, np.full((1, 1), 1e6))
    assert far.mean[0, 0] == pytest.approx(15e-4, rel=1e-3) and far.variance[0, 0] == pytest.approx(noise, rel=1e-3)
    between = combined(sums, np.full((1, 1), 3.0))
    assert 1e-3 < between.mean[0, 0] < 15e-4 and 1e-8 < between.variance[0, 0] < min(3e-8, noise)


@pytest.fixture(scope="module")
def given():
    """Completed means whose prior claims a third of its variance, on average over areas."""
    random, n = np.random.default_rng(0), 200_000
    exposure, level = 1.6e6, 1e-3
    claimed, noise = (0.05 * level) ** 2, level / exposure
    inflation = 3 * np.exp(_region_sums.OF_AREA_SPREAD * random.normal(size=n))
    true = level + np.sqrt(inflation * claimed) * random.normal(size=n)
    raw = true + np.sqrt(noise) * random.normal(size=n)
    posterior = claimed * noise / (claimed + noise)
    completed = level + claimed / (claimed + noise) * (raw - level)
    # The factor is that of the completed mean with its own counts.
    own = claimed / (claimed + noise)
    factor = 1 + (3 - 1) * claimed * (1 - own) ** 2 / posterior
    columns = (
        np.full((1, n), exposure),
        raw[None] * exposure,
        np.full((1, n), exposure),
        completed[None],
        np.full((1, n), posterior),
    )
    return true, raw, AreaSums(*columns), np.full((1, n), factor)


def test_combined_means_are_the_best(given):
    """The combination knows better than both, and how well."""
    true, raw, sums, factor = given
    found = combined(sums, factor)
    error = np.square(found.mean - true).mean()
    assert error < 0.99 * min(np.square(raw - true).mean(), np.square(sums.mean - true).mean())
    assert error / found.variance.mean() == pytest.approx(1, abs=0.05)


def test_how_far_the_completion_is_off_is_seen_from_the_counts(given, monkeypatch):
    true, raw, sums, factor = given
    found = combined(sums, factor)
    far = np.abs(raw - sums.mean[0]) > np.quantile(np.abs(raw - sums.mean[0]), 0.95)
    error, claimed = np.square(found.mean - true)[0], found.variance[0]
    assert error[far].mean() / claimed[far].mean() == pytest.approx(1, abs=0.15)
    assert error[~far].mean() / claimed[~far].mean() == pytest.approx(1, abs=0.1)
    # Alike for all areas, it would be too far off here and say too little of it.
    monkeypatch.setattr(_region_sums, "_OF_AREA", [0.0])
    alike = combined(sums, factor)
    worse = np.square(alike.mean - true)[0]
    assert error[far].mean() < 0.95 * worse[far].mean() and worse[far].mean() > 1.25 * alike.variance[0, far].mean()


def test_inflation_is_found():
    random = np.random.default_rng(1)
    share, n_spots = np.geomspace(1e-5, 1e-3, 60), np.repeat([7, 50, 500], [120, 40, 12])
    exposure = n_spots[:, None] * 2000.0 + np.zeros(60)
    mean = np.broadcast_to(share, exposure.shape)
    claimed = (0.1 * mean) ** 2
    factor = np.full((len(n_spots), 60), 4.0)
    factor[:, 30] = 25.0
    shape = mean**2 / (factor * claimed)
    counts = random.poisson(random.gamma(shape) / shape * mean * exposure).astype(float)
    sums = AreaSums(exposure[:, :1], counts, exposure, mean, claimed)
    found = _fitted(share, n_spots, counts, sums, random).of(np.arange(60), np.array([7, 50, 500]))
    assert np.median(found[1]) == pytest.approx(4, rel=0.4)
    assert found[1, 30] > 2 * np.median(found[1])
    # What is claimed rightly stays.
    counts = random.poisson(random.gamma(mean**2 / claimed) * claimed / mean * exposure).astype(float)
    found = _fitted(share, n_spots, counts, sums, random).of(np.arange(60), np.array([7, 50, 500]))
    assert np.median(found) < 1.5


def test_probability_of_no_molecule():
    means = AreaMeans(np.array([2e-3]), np.array([1e-6]))
    random = np.random.default_rng(2)
    counts = random.poisson(random.gamma(4, 5e-4, 100_000) * 700)
    assert unseen(means, np.array(700.0))[0] == pytest.approx((counts == 0).mean(), abs=0.005)
    low, high = intervals(means)
    drawn = stats.gamma.rvs(4, scale=5e-4, size=100_000, random_state=random)
    assert ((drawn > low) & (drawn < high)).mean() == pytest.approx(0.95, abs=0.005)


def test_calls(trained):
    table, probability = trained.detect_expression(n_spots=3, error=0.2, return_probability=True, **QUIET)
    assert table.shape == trained.adata.shape and list(table.columns) == list(trained.adata.var_names)
    calls, found = table.to_numpy().astype(str), probability.to_numpy()
    assert set(np.unique(calls)) <= {"present", "absent", "undecided"}
    np.testing.assert_array_equal(calls == "present", found >= 0.8)
    np.testing.assert_array_equal(calls == "absent", found <= 0.2)
    stricter = trained.detect_expression(n_spots=3, error=0.01, **QUIET).to_numpy().astype(str)
    assert ((stricter == "undecided") | (stricter == calls)).all()
    # A larger region leaves less open.
    wider = trained.detect_expression(n_spots=40, error=0.01, **QUIET).to_numpy().astype(str)
    assert (wider == "undecided").mean() < (stricter == "undecided").mean()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "groupby=, or ask for patches"),
        ({"groupby": "domain", "n_spots": 3}, ValueError, "one of the two"),
        ({"groupby": "layers"}, KeyError, "no column 'layers'"),
        ({"n_spots": 0}, ValueError, "n_spots=0 must be"),
        ({"n_spots": 2, "error": 0.6}, ValueError, "error=0.6 must be between"),
        ({"n_spots": 2, "gene_list": ["none"]}, ValueError, "not in adata.var_names"),
    ],
)
def test_wrong_options(trained, options, error, message):
    with pytest.raises(error, match=message):
        trained.detect_expression(**options, **QUIET)


def test_errors_are_looked_for_once(trained, monkeypatch):
    trained.get_region_expression(n_spots=2, gene_list=GENES, **QUIET)
    monkeypatch.setattr("lgdist_scvi.model._regions.find_inflation", lambda *_, **__: pytest.fail("found again"))
    trained.get_region_expression(n_spots=9, gene_list=GENES, **QUIET)
    with pytest.raises(pytest.fail.Exception, match="found again"):
        trained.get_region_expression(n_spots=9, gene_list=GENES, seed=5, **QUIET)
    monkeypatch.setattr("lgdist_scvi.model._regions.find_inflation", lambda *_, **__: Inflation(np.zeros(40), 0.0, 500))
    trained.get_region_expression(n_spots=9, gene_list=GENES, seed=5, **QUIET)
