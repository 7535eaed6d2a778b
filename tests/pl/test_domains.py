"""Maps of domains."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from lgdist_scvi import pl


@pytest.fixture
def adata():
    """Two sections of 3 x 4 spots, three domains, one spot without any."""
    rows, columns = np.mgrid[:6, :4]
    adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(24)]))
    adata.obsm["spatial"] = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    adata.obs["section"] = np.repeat(["one", "two"], 12)
    adata.obs["domain"] = pd.Categorical.from_codes(np.r_[-1, np.tile([0, 1, 2], 8)[1:]], ["1", "2", "3"])
    return adata


def test_sections_share_their_colours(adata):
    axes = pl.domains(adata, library_key="section")
    assert axes.shape == (1, 2)
    assert [ax.get_title() for ax in axes[0]] == ["domain, one", "domain, two"]
    first, second = (ax.collections[0] for ax in axes[0])
    assert first.get_array().mask.tolist() == [True] + [False] * 11
    np.testing.assert_allclose(first.to_rgba(first.get_array())[0], (0.85, 0.85, 0.85, 1))
    np.testing.assert_array_equal(second.get_array(), adata.obs["domain"].cat.codes[12:])
    colours = [drawn.to_rgba(np.arange(3)) for drawn in (first, second)]
    np.testing.assert_array_equal(*colours)
    legend = axes[0, 1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["1", "2", "3"]
    shown = [patch.get_facecolor() for patch in legend.get_patches()]
    np.testing.assert_allclose(shown, colours[0])
    axes[0, 0].figure.canvas.draw()


def test_many_domains_have_colours_of_their_own(adata):
    adata.obs["domain"] = pd.Categorical(np.arange(24))
    (drawn,) = pl.domains(adata)[0, 0].collections
    assert len(np.unique(drawn.to_rgba(np.arange(24)), axis=0)) == 24


def test_missing_domains_are_named(adata):
    with pytest.raises(KeyError, match=r"no column 'leiden' .*call lgdist_scvi.tl.domains"):
        pl.domains(adata, "leiden")


def test_the_figure_is_saved(adata, saves):
    saves(pl.domains, adata, library_key="section", scalebar_dx=1.0)
