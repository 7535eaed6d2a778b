"""Control features are recognised by name, kept beside the genes, and audited as absent genes."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import LGDiST, pp, tl
from lgdist_scvi.data._controls import controls_among

CONTROLS = [
    "NegControlProbe_00042",
    "NegControlCodeword_0500",
    "UnassignedCodeword_0001",
    "antisense_LYZ",
    "BLANK_0007",
    "Negative3",
    "NegPrb12",
    "SystemControl4",
    "FalseCode17",
    "Blank-5",
    "DEPRECATED_ENSG00000130201",
]
GENES = ["NEGR1", "Negr1", "BLNK", "DEPDC1", "FALSE1", "SYS1", "Anti", "Negative_elongation"]


def test_names():
    assert controls_among(CONTROLS).all() and not controls_among(GENES).any()


@pytest.fixture
def panel():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(2, (150, 19)).astype(np.float32)))
    adata.var_names = [*CONTROLS[:5], *GENES, *CONTROLS[5:]]
    adata.obsm["spatial"] = rng.uniform(0, 100, (150, 2))
    return adata


def test_counts_are_kept_beside_the_genes(panel):
    with pytest.warns(
        UserWarning, match=r"11 control features \('NegControlProbe_00042',.*left out.*obsm\['controls'\]"
    ):
        genes = pp.drop_controls(panel)
    assert list(genes.var_names) == GENES and list(genes.obsm["controls"]) == CONTROLS
    np.testing.assert_array_equal(genes.obsm["controls"], panel[:, CONTROLS].X.toarray())
    assert panel.n_vars == 19
    again = pp.drop_controls(genes)
    assert again.obsm["controls"].equals(genes.obsm["controls"])


def test_setup_warns_and_selection_leaves_them_out(panel):
    with pytest.warns(UserWarning, match=r"11 control features .*drop_controls\(adata\)"):
        LGDiST.setup_anndata(panel)
    with pytest.warns(UserWarning, match="left out of the genes"):
        chosen = pp.select_genes(panel, n_target=3, n_context=5)
    assert set(chosen.var_names) == set(GENES)
    np.testing.assert_array_equal(chosen.obs["total_counts"], panel[:, GENES].X.toarray().sum(axis=1))


@pytest.mark.filterwarnings("ignore:.*control features:UserWarning")
def test_an_audit_takes_them_for_decoys(panel):
    given = tl.prepare_audit(pp.drop_controls(panel), n_decoys=2)
    assert list(given.var_names) == [*GENES, "decoy_1", "decoy_2", *CONTROLS]
    assert list(given.var_names[given.var["decoy"]]) == ["decoy_1", "decoy_2", *CONTROLS]
    both = given[:, CONTROLS].layers["counts"] + given[:, CONTROLS].layers["held_out"]
    np.testing.assert_array_equal(both.toarray(), panel[:, CONTROLS].X.toarray())
    given.layers["raw"] = given.layers["counts"].copy()
    assert set(tl.audit(given, "raw", scale="counts").null_tests["gene"]) >= set(CONTROLS)
    genes = pp.drop_controls(panel)
    genes.obsm["controls"].iloc[4, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"obsm\['controls'\] has values that are no counts for 1 spot .*'4'.*drop_controls"
    ):
        tl.prepare_audit(genes)
