"""Differential expression: the table and the groups; ``test_truth.py`` has its level and its power."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

QUIET = {"silent": True}


def test_table(trained):
    table = trained.differential_expression(groupby="domain", **QUIET)
    groups = sorted(trained.adata.obs["domain"].astype(str).unique())
    assert list(table["comparison"].unique()) == [f"{group} vs rest" for group in groups]
    for _, part in table.groupby("comparison"):
        assert sorted(part.index) == sorted(trained.adata.var_names)
        assert part["pvals_adj"].is_monotonic_increasing
    np.testing.assert_allclose(table["pvals"], 2 * stats.norm.sf(table["scores"].abs()))
    np.testing.assert_allclose(table["logfoldchanges"], np.log2(table["mean1"] / table["mean2"]), rtol=1e-6)
    assert (table["lfc_low"] < table["logfoldchanges"]).all() and (table["logfoldchanges"] < table["lfc_high"]).all()
    assert table.drop(columns=["comparison", "group1", "group2"]).notna().all(axis=None)


def test_groups_named_in_three_ways(trained):
    domain = trained.adata.obs["domain"].astype(str)
    first, second = sorted(domain.unique())[:2]
    named = trained.differential_expression(groupby="domain", group1=first, group2=second, **QUIET)
    assert list(named["comparison"].unique()) == [f"{first} vs {second}"]
    masks = [(domain == group).to_numpy() for group in (first, second)]
    for indices in (masks, [np.flatnonzero(mask) for mask in masks]):
        again = trained.differential_expression(idx1=indices[0], idx2=indices[1], **QUIET)
        columns = ["scores", "logfoldchanges", "pvals_adj", "lfc_expected"]
        pd.testing.assert_frame_equal(again[columns], named[columns])
    turned = trained.differential_expression(groupby="domain", group1=[second], group2=first, **QUIET)
    np.testing.assert_allclose(turned.loc[named.index, "scores"], -named["scores"], atol=1e-6)
    np.testing.assert_allclose(turned.loc[named.index, "lfc_expected"], -named["lfc_expected"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "groupby=, or their spots with idx1="),
        ({"groupby": "domain", "idx1": [1, 2, 3]}, "one of the two"),
        ({"groupby": "domain", "group1": "none"}, "has no group 'none'"),
        ({"groupby": "domain", "group1": float("nan")}, "has no group nan"),
        ({"idx1": [1, 2, 3], "idx2": [3, 4, 5]}, "1 spots are in both groups, the first in row 3"),
        ({"idx1": [1, 2]}, "group1 has 2 spots; a comparison needs at least 3"),
        ({"idx1": [1, 2, 500]}, "must lie in 0..149"),
        ({"groupby": "domain", "group1": "one", "group2": "one"}, "the same group"),
    ],
)
def test_wrong_groups(trained, options, message):
    if options.get("group1") == "one":
        options = options | dict.fromkeys(("group1", "group2"), str(trained.adata.obs["domain"].iloc[0]))
    with pytest.raises(ValueError, match=message):
        trained.differential_expression(**options, **QUIET)


def test_groups_in_different_sections(trained):
    with pytest.warns(UserWarning, match="have no section in common"):
        table = trained.differential_expression(
            groupby="library_id", group1=trained.adata.obs["library_id"].iloc[0], **QUIET
        )
    assert table["pvals"].between(0, 1).all()
