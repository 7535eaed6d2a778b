"""The truth passes an audit, and what is broken in one way fails the question that is meant for it."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.cluster import KMeans

from lgdist_scvi.metrics import count_coverage, deviance_explained
from lgdist_scvi.tl import _questions as questions
from lgdist_scvi.tl import audit

ALL = ["totals", "over-imputation", "deviance explained", "contrast", "null tests", "correlations", "coverage"]


def real(prepared):
    return ~prepared.var["decoy"].to_numpy()


def audited(prepared, values, std=None, **options):
    """Audit of rates."""
    adata = prepared.copy()
    adata.layers["values"] = values
    if std is not None:
        adata.layers["std"] = std
    return audit(
        adata, "values", **{"scale": "rate", "groupby": "domain"} | options, std_layer=None if std is None else "std"
    )


def value(result, question, row=0):
    return result.summary.loc[result.summary["question"] == question, "value"].to_numpy()[row]


def doubled(prepared, truth):
    return 1.3 * truth


def filled(prepared, truth):
    """Absent genes get half of their mean; the totals stay."""
    values = np.where(truth == 0, truth.mean(axis=0) / 2, truth)
    depth = prepared.obs["depth"].to_numpy()
    return values * (depth @ truth) / (depth @ values)


def noisy(prepared, truth):
    """Noise in each entry, which leaves sums as they are."""
    return np.minimum(truth * np.random.default_rng(0).gamma(0.3, 1 / 0.3, truth.shape), 1)


def smoothed(prepared, truth):
    """Two thirds of the log ratio to the mean of the gene, whose total stays."""
    mean = truth.mean(axis=0)
    flat = np.where(truth > 0, truth, 1) ** 0.67 * mean**0.33 * (truth > 0)
    depth = prepared.obs["depth"].to_numpy()
    return flat * (depth @ truth) / (depth @ flat)


def cluster_means(prepared, truth):
    """Decoys are averaged over small neighbourhoods, as if these were known without noise."""
    decoy = ~real(prepared)
    patch = KMeans(60, n_init=1, random_state=0).fit_predict(prepared.obsm["spatial"])
    means = pd.DataFrame(prepared.X.toarray()[:, decoy]).groupby(patch).transform("sum").to_numpy()
    depth = prepared.obs["depth"].groupby(patch).transform("sum").to_numpy()
    broken = truth.copy()
    broken[:, decoy] = means / depth[:, None]
    return broken


def smooth(prepared, truth):
    """What varies between single spots is left out."""
    return prepared.layers["smooth"]


BROKEN = {
    "totals": doubled,
    "over-imputation": filled,
    "contrast": smoothed,
    "null tests": cluster_means,
    "correlations": smooth,
}


def test_the_truth_passes(prepared):
    truth = prepared.layers["truth"]
    result = audited(prepared, truth, std=np.zeros_like(truth))
    assert result.failed == []
    assert result.summary["question"].unique().tolist() == ALL
    assert result.summary["fine"].isna().sum() == 1  # the test of counts is there for comparison
    assert result.summary.loc[result.summary["fine"].isna(), "detail"].item().endswith("for comparison")
    assert value(result, "null tests", 1) == pytest.approx(0.05, abs=0.04)
    assert "7 of 7 questions could be answered. All of them as they should be." in str(result)


@pytest.mark.parametrize("question", BROKEN)
def test_what_is_broken_fails_its_question(prepared, question):
    result = audited(prepared, BROKEN[question](prepared, prepared.layers["truth"]))
    assert result.failed == [question], str(result)
    assert f"Not as it should be: {question}." in str(result)


def test_noise_fails_deviance_and_correlations(prepared):
    result = audited(prepared, noisy(prepared, prepared.layers["truth"]))
    assert result.failed == ["deviance explained", "correlations"]
    assert value(result, "correlations") < 1


@pytest.mark.parametrize(("factor", "verdict"), [(0.0, "too narrow"), (2.0, "too wide")])
def test_intervals_that_are_wrong_fail_coverage(prepared, factor, verdict):
    """Rates are off by two fifths here; the std says so, nothing, or twice as much."""
    truth = prepared.layers["truth"]
    rate = truth * np.random.default_rng(0).gamma(6.25, 0.16, truth.shape)
    right = audited(prepared, rate, std=0.4 * truth)
    assert "coverage" not in right.failed
    result = audited(prepared, rate, std=factor * 0.4 * truth)
    assert "coverage" in result.failed and set(result.failed) - set(right.failed) == {"coverage"}
    verdicts = result.summary["verdict"][result.summary["question"] == "coverage"]
    assert verdict in verdicts.tolist() and set(verdicts) <= {verdict, "right"}


def test_raw_counts_are_unbiased_and_noisy(prepared):
    result = audited(prepared, prepared.X.copy(), scale="counts")
    assert result.failed == ["correlations"]
    assert value(result, "contrast") == pytest.approx(1, abs=0.05)
    assert value(result, "null tests") == pytest.approx(0.05, abs=0.04)
    assert value(result, "correlations") < 0.75


def test_deviance_and_coverage_are_those_of_the_metrics(prepared):
    rate, depth = prepared.layers["truth"] * 1.1, prepared.obs["held_out_depth"].to_numpy()
    given, held_out = (prepared.layers[name].toarray() for name in ("counts", "held_out"))
    means = given.sum(axis=0) / prepared.obs["depth"].sum()
    result = audited(prepared, rate, std=0.3 * rate)
    seen = real(prepared) & (means > 0)
    expected = deviance_explained(held_out[:, seen], rate[:, seen], depth, means[seen])
    assert value(result, "deviance explained") == pytest.approx(expected)
    gene = "gene_150"
    column = [prepared.var_names.get_loc(gene)]
    expected = deviance_explained(held_out[:, column], rate[:, column], depth, means[column])
    assert result.genes.loc[gene, "deviance_explained"] == pytest.approx(expected)
    mean = rate[:, column] * depth[:, None]
    expected = count_coverage(held_out[:, column], mean, 0.3 * mean, 0.8)
    assert result.genes.loc[gene, "coverage_0.8"] == pytest.approx(expected)


def test_scales_and_formats_say_the_same(prepared):
    rate, depth = prepared.layers["truth"], prepared.obs["depth"].to_numpy()[:, None]
    std = 0.2 * rate
    expected = audited(prepared, rate, std=std).summary
    others = {
        "counts": (rate * depth, std * depth),
        "log1p": (np.log1p(rate * 1e4), std * 1e4 / (1 + rate * 1e4)),
        "rate": (sparse.csr_matrix(rate), sparse.csc_matrix(std)),
    }
    for scale, (values, its_std) in others.items():
        found = audited(prepared, values, std=its_std, scale=scale).summary
        pd.testing.assert_frame_equal(found, expected, rtol=1e-6)


def test_blocks_of_genes_say_the_same(prepared, monkeypatch):
    expected = audited(prepared, prepared.layers["truth"])
    monkeypatch.setattr("lgdist_scvi.tl._inputs.BLOCK_ENTRIES", 600 * 7)
    found = audited(prepared, prepared.layers["truth"])
    columns = ["mean", "total_ratio", "n_absent", "deviance_explained", "false_discoveries"]
    pd.testing.assert_frame_equal(found.genes[columns], expected.genes[columns])
    assert found.genes.index.tolist() == prepared.var_names.tolist()
    assert found.failed == []


def test_table_of_genes(prepared):
    adata = filled(prepared, prepared.layers["truth"])
    result = audited(prepared, adata)
    genes = result.genes
    assert genes["n_over_imputed"].sum() == value(result, "over-imputation") * genes["n_absent"].sum() > 0
    absent = genes.index[genes["n_over_imputed"] > 0]
    assert (prepared[:, absent].layers["truth"] == 0).any(axis=0).all()
    assert genes["false_discoveries"].notna().sum() == genes["decoy"].sum()
    assert genes.loc[~genes["decoy"], "contrast"].notna().sum() > 20
    frequent = genes[genes["measured"] > 5000]
    assert frequent["total_ratio"].between(0.95, 1.1).all() and len(frequent) > 5
    slopes = genes["correlation_slope"].dropna()
    assert set(slopes.index) == {*result.correlations["gene_1"], *result.correlations["gene_2"]}
    assert set(result.regions["region"]) == set(prepared.obs["domain"])


def test_regions_are_compact_by_default(prepared):
    result = audited(prepared, prepared.layers["truth"], groupby=None)
    assert set(result.regions["region"]) == set("12345678")
    assert result.failed == []
    again = audited(prepared, prepared.layers["truth"], groupby=None)
    pd.testing.assert_frame_equal(result.summary, again.summary)


def test_without_held_out_molecules_or_decoys(tissue):
    result = audit(tissue, "rate", scale="rate", groupby="domain")
    asked = result.summary.groupby("question", sort=False)["fine"].apply(lambda fine: fine.notna().any())
    assert asked.index[asked].tolist() == ["totals", "over-imputation"]
    assert result.failed == []
    reasons = result.summary.set_index("question")["verdict"]
    assert (
        reasons["contrast"]
        == reasons["deviance explained"]
        == "not asked: no molecules are held out; see tl.prepare_audit"
    )
    assert (reasons["null tests"] == "not asked: there are no decoy genes; see tl.prepare_audit").all()
    assert (reasons["coverage"] == "not asked: no std_layer").all()
    assert "2 of 7 questions could be answered" in result._repr_html_()
    told = audit(tissue, "rate", scale="rate", std_layer="rate").summary.set_index("question")["verdict"]
    assert told["coverage"].str.contains("no molecules are held out").all()


def test_depth_of_a_panel(prepared):
    """Rates that refer to twice the molecules of the panel."""
    panel = prepared[:, real(prepared)].copy()
    panel.obs = panel.obs[["domain"]].assign(lib=2 * np.asarray(panel.X.sum(axis=1)).ravel())
    rate = panel.layers["truth"] / panel.layers["truth"].sum(axis=1, keepdims=True) / 2
    assert audited(panel, rate, size_factor_key="lib").failed == []
    assert audited(panel, rate).failed == ["totals"]


def test_a_wrong_scale_is_suspected(prepared):
    result = audited(prepared, prepared.layers["truth"], scale="counts")
    assert result.summary["verdict"].str.contains(r"is scale='counts' right\?").any()


def test_constant_values_have_no_correlation(prepared):
    means = np.asarray(prepared.X.sum(axis=0)) / prepared.obs["depth"].sum()
    result = audited(prepared, np.repeat(means, prepared.n_obs, axis=0))
    reasons = result.summary.set_index("question")["verdict"]
    assert reasons["correlations"] == "not asked: no correlations that can be measured"
    assert value(result, "contrast") == pytest.approx(0, abs=0.02)
    assert value(result, "deviance explained") == pytest.approx(0, abs=1e-6)


def test_page(prepared):
    result = audited(prepared, doubled(prepared, prepared.layers["truth"]))
    page, html = str(result), result._repr_html_()
    assert repr(result) == page
    assert page.startswith("Audit of layers['values'] (scale='rate'): 600 spots, 200 genes, 50 decoys, 5 regions")
    assert "1.3 times what was counted" in page
    assert "Not as it should be: totals." in html and html.count("<tr") == len(result.summary) + 1


def test_welch_is_that_of_scipy(prepared):
    from scipy import stats

    one, other = np.random.default_rng(0).normal(1, 1, (2, 20, 5)) * [[[1.0]], [[2.0]]]
    found = questions._welch(one, other[:15])
    np.testing.assert_allclose(found, stats.ttest_ind(one, other[:15], equal_var=False).pvalue)
    constant = questions._welch(np.ones((5, 2)), np.tile([1.0, 2.0], (5, 1)))
    assert constant.tolist() == [1, 0]


BAD = {
    "missing": (
        lambda a: None,
        {"layer": "magic"},
        KeyError,
        r"layers\['magic'\] is missing \(found: .*correct layer=",
    ),
    "no name": (lambda a: None, {"layer": None}, TypeError, "layer=None must be the name of a layer"),
    "missing std": (lambda a: None, {"std_layer": "std"}, KeyError, "correct std_layer="),
    "missing held out": (lambda a: None, {"held_out_layer": "other"}, KeyError, "correct held_out_layer="),
    "scale": (lambda a: None, {"scale": "log"}, ValueError, "scale='log' is unknown"),
    "not finite": (
        lambda a: a.layers["truth"].__setitem__((3, 4), np.nan),
        {},
        ValueError,
        r"layers\['truth'\] \(layer\) has values that are NaN or infinite, such as nan in spot 'section_1_spot_4', gene 'gene_5'",
    ),
    "negative": (
        lambda a: a.layers["truth"].__setitem__((0, 1), -0.5),
        {},
        ValueError,
        "negative, such as -0.5 in spot .*clip",
    ),
    "rate": (
        lambda a: a.layers["truth"].__setitem__((0, 1), 1.5),
        {},
        ValueError,
        "with scale='rate' no value exceeds 1;",
    ),
    "log1p": (
        lambda a: a.layers["truth"].__setitem__((0, 1), 9.5),
        {"scale": "log1p"},
        ValueError,
        "with scale='log1p' no value exceeds 9.21",
    ),
    "counts": (lambda a: a.layers["counts"].data.__imul__(0.5), {}, ValueError, "not whole numbers"),
    "no region": (lambda a: None, {"groupby": "layer"}, KeyError, "correct groupby="),
    "one region": (lambda a: None, {"groupby": "library_id"}, ValueError, "has one region only"),
    "region unknown": (
        lambda a: a.obs.__setitem__("domain", None),
        {},
        ValueError,
        r"\(groupby\) is NaN for 600 spots",
    ),
    "no position": (lambda a: a.obsm.pop("spatial"), {}, KeyError, "correct spatial_key="),
    "depth": (lambda a: a.obs.__setitem__("lib", 1.0), {"size_factor_key": "lib"}, ValueError, "less than the counts"),
    "decoys only": (lambda a: a.var.__setitem__("decoy", True), {}, ValueError, "is True for all genes"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused(prepared, fault):
    change, options, error, message = BAD[fault]
    adata = prepared.copy()
    change(adata)
    with pytest.raises(error, match=message):
        audit(adata, **{"layer": "truth", "scale": "rate", "groupby": "domain"} | options)


def test_counts_are_named_in_the_note(prepared):
    with pytest.raises(ValueError, match="not whole numbers") as caught:
        audit(prepared, "truth", scale="rate", counts_layer="truth")
    assert "counts_layer=" in caught.value.__notes__[0]


def test_too_few_spots_and_backed_data(prepared, tmp_path):
    with pytest.raises(ValueError, match="19 spots, too few to compare regions"):
        audit(prepared[:19].copy(), "truth", scale="rate")
    prepared.write_h5ad(tmp_path / "prepared.h5ad")
    with pytest.raises(ValueError, match="backed by a file"):
        audit(anndata.read_h5ad(tmp_path / "prepared.h5ad", backed="r"), "truth")
