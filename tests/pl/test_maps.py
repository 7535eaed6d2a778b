"""Maps of a small made-up section."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from matplotlib import pyplot as plt
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import sparse

from lgdist_scvi import pl


@pytest.fixture
def adata():
    """Two sections of 5 x 6 and 3 x 6 spots, 4 genes."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:8, :6]
    counts = rng.poisson(3, size=(48, 4)).astype(np.float32)
    counts[:, 3] += 1  # no spot is empty
    adata = AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(index=[f"s{i}" for i in range(48)]))
    adata.var_names = ["A", "B", "C", "D"]
    adata.obsm["spatial"] = 100.0 * np.column_stack([columns.ravel(), rows.ravel()])
    adata.obs["section"] = pd.Categorical(np.where(np.arange(48) < 30, "one", "two"))
    adata.layers["counts"] = adata.X.copy()
    adata.layers["lgdist"] = rng.random((48, 4)).astype(np.float32) + 5
    adata.layers["lgdist_std"] = sparse.csc_matrix(rng.random((48, 4)))
    return adata


def drawn(ax):
    """The values of the discs of a panel, NaN where grey."""
    (discs,) = ax.collections
    return np.ma.filled(discs.get_array().astype(float), np.nan)


def expected_measured(counts, depth, gene):
    return np.log1p(counts[:, gene] / depth * 1e4)


def test_completion_draws_measured_and_completed(adata):
    axes = pl.completion(adata, ["C", "A"])
    assert axes.shape == (2, 2)
    counts = adata.X.toarray()
    for row, gene in zip(axes, (2, 0), strict=True):
        np.testing.assert_allclose(drawn(row[0]), expected_measured(counts, counts.sum(1), gene), rtol=1e-6)
        np.testing.assert_allclose(drawn(row[1]), adata.layers["lgdist"][:, gene], rtol=1e-6)
        measured, completed = (ax.collections[0] for ax in row)
        assert measured.get_clim() == completed.get_clim()
        assert measured.get_clim()[0] == 0
        assert measured.get_clim()[1] == pytest.approx(np.percentile(np.r_[drawn(row[0]), drawn(row[1])], 99.5))
    assert [ax.get_title() for ax in axes.ravel()] == ["C, measured", "C, completed", "A, measured", "A, completed"]
    bars = [ax for ax in axes[0, 0].figure.axes if ax not in set(axes.ravel())]
    assert [bar.get_ylabel() for bar in bars] == ["log1p(counts per 10,000)"] * 2


def test_maps_are_drawn_as_images_are(adata):
    for ax in pl.completion(adata, "A").ravel():
        assert ax.get_aspect() == 1
        assert ax.yaxis_inverted()
        assert not ax.xaxis_inverted()
        (discs,) = ax.collections
        np.testing.assert_array_equal(discs.get_offsets(), adata.obsm["spatial"])
        np.testing.assert_allclose(discs.get_widths(), 100)  # the distance between spots
    (discs,) = pl.completion(adata, "A", spot_size=55)[0, 0].collections
    np.testing.assert_allclose(discs.get_widths(), 55)


def test_discs_have_their_size_on_the_page(adata):
    """Touching discs on a square grid fill pi / 4 of its cells, whatever the size of the figure."""
    for inches in (3, 8):
        ax = pl.uncertainty(adata, "A", axes=plt.figure(figsize=(inches, inches)).add_subplot())[0, 0]
        ax.set_title("")
        ax.figure.canvas.draw()
        left, bottom, right, top = np.round(ax.get_window_extent().extents).astype(int)
        page = np.asarray(ax.figure.canvas.buffer_rgba())[::-1, :, :3]
        inked = (page[bottom:top, left:right] < 250).any(axis=2).mean()
        cells = 48 * 100**2 / (np.ptp(ax.get_xlim()) * np.ptp(ax.get_ylim()))
        assert inked == pytest.approx(np.pi / 4 * cells, rel=0.1)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_counts_of_a_layer_and_a_depth_column(adata, form):
    counts = adata.layers["counts"].toarray()
    adata.layers["counts"] = form(counts.astype(np.int64))
    adata.X = np.full(adata.shape, np.nan)
    adata.obs["total_counts"] = counts.sum(1) * 7.0
    ax = pl.completion(adata, "B", measured_layer="counts", size_factor_key="total_counts")[0, 0]
    np.testing.assert_allclose(drawn(ax), expected_measured(counts, counts.sum(1) * 7, 1), rtol=1e-6)


def test_hidden_counts_are_not_shown(adata):
    observed = np.random.default_rng(1).random(adata.shape) < 0.7
    adata.layers["observed"] = observed
    first = drawn(pl.completion(adata, "B", observed_layer="observed")[0, 0])
    assert np.array_equal(np.isnan(first), ~(observed[:, 1] & (adata.X.toarray() * observed).any(1)))
    changed = adata.X.toarray()
    changed[~observed] = 1e6
    adata.X = changed
    np.testing.assert_array_equal(drawn(pl.completion(adata, "B", observed_layer="observed")[0, 0]), first)


def test_plots_know_how_the_data_were_registered(small, tmp_path):
    adata = small.tissue()
    adata.X = None
    adata.obs["section"] = np.where(adata.obsm["spatial"][:, 0] < np.median(adata.obsm["spatial"][:, 0]), "a", "b")
    adata.obs["depth"] = 3.0 * np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    adata.layers["seen"] = np.random.default_rng(0).random(adata.shape) < 0.9
    setup = {"size_factor_key": "depth", "library_key": "section", "observed_layer": "seen"}
    model = small.fit(small.build(adata, **setup), max_epochs=1)
    model.add_completed_layer(return_std=True, **small.READ)
    adata.write_h5ad(tmp_path / "completed.h5ad")
    given = {"measured_layer": "counts", **setup}
    for data in (adata, read_h5ad(tmp_path / "completed.h5ad")):
        told = pl.completion(data, "gene_1", uncertainty=True, **given)
        for one, other in zip(told.ravel(), pl.completion(data, "gene_1", uncertainty=True).ravel(), strict=True):
            assert one.get_title() == other.get_title()
            np.testing.assert_array_equal(drawn(one), drawn(other))
        assert pl.uncertainty(data, "gene_1").shape == (2, 1)


def test_one_section_is_drawn(adata):
    axes = pl.completion(adata, "A", library_key="section", library_id="two")
    counts = adata.X.toarray()[30:]
    np.testing.assert_allclose(drawn(axes[0, 0]), expected_measured(counts, counts.sum(1), 0), rtol=1e-6)
    assert len(drawn(pl.uncertainty(adata, "A", library_key="section", library_id="one")[0, 0])) == 30
    assert len(drawn(pl.completion(adata[:30].copy(), "A", library_key="section")[0, 0])) == 30
    assert len(drawn(pl.completion(adata[:30], "A")[0, 0])) == 30  # a view


def test_several_sections_share_the_scale_of_a_gene(adata):
    adata.layers["lgdist"][30:] += 3
    axes = pl.completion(adata, ["A", "B"], library_key="section")
    assert axes.shape == (4, 2)
    assert [ax.get_title() for ax in axes[:2, 1]] == ["A, completed, one", "A, completed, two"]
    np.testing.assert_allclose(drawn(axes[1, 1]), adata.layers["lgdist"][30:, 0], rtol=1e-6)
    assert axes[0, 0].collections[0].get_clim() == axes[1, 1].collections[0].get_clim()
    assert axes[0, 0].collections[0].get_clim() != axes[2, 0].collections[0].get_clim()
    axes = pl.uncertainty(adata, "A", library_key="section", library_id=["two", "one"])
    assert axes.shape == (2, 1)
    assert axes[0, 0].get_title() == "A, two" and len(drawn(axes[0, 0])) == 18


def test_image_lies_beneath_the_spots_where_it_was_taken(adata):
    picture = np.zeros((80, 60, 3), np.uint8)
    factors = {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.01, "spot_diameter_fullres": 55.0}
    entry = {"images": {"lowres": picture[:8, :6], "hires": picture}, "scalefactors": factors}
    adata.uns["spatial"] = {"two": entry}
    one, two = pl.completion(adata, "A", library_key="section")[:, 0]
    assert not one.images
    (image,) = two.images
    assert image.get_array().shape == (80, 60, 3)
    assert image.get_extent() == [0, 600, 800, 0]  # in the unit of the positions
    np.testing.assert_allclose(two.collections[0].get_widths(), 55)
    np.testing.assert_allclose(one.collections[0].get_widths(), 100)
    assert two.get_xlim() == (-100, 600) and two.yaxis_inverted()
    assert pl.uncertainty(adata, "A", img_alpha=0.5)[0, 0].images[0].get_alpha() == 0.5
    assert not pl.uncertainty(adata, "A", img=False)[0, 0].images
    del entry["scalefactors"]["tissue_hires_scalef"], entry["scalefactors"]["tissue_lowres_scalef"]
    assert not pl.uncertainty(adata, "A")[0, 0].images  # nobody knows where


def test_uncertainty(adata):
    axes = pl.uncertainty(adata, ["D", "B"])
    assert axes.shape == (1, 2)
    axes = axes[0]
    np.testing.assert_allclose(drawn(axes[1]), adata.layers["lgdist_std"].toarray()[:, 1])
    assert [ax.get_title() for ax in axes] == ["D", "B"]
    bars = [ax for ax in axes[0].figure.axes if ax not in set(axes)]
    assert all("standard deviation" in bar.get_ylabel() for bar in bars)


def test_given_axes_are_used(adata):
    figure, given = plt.subplots(2, 2)
    assert (pl.completion(adata, ["A", "B"], axes=given) == given).all()
    alone = plt.figure().add_subplot()
    assert pl.uncertainty(adata, "A", axes=alone)[0, 0] is alone
    before = plt.get_fignums()
    pl.uncertainty(adata, "A", axes=plt.subplots()[1])
    assert len(plt.get_fignums()) == len(before) + 1
    with pytest.raises(ValueError, match="axes holds 4 axes, but 2 panels"):
        pl.completion(adata, "A", axes=given)


def test_nothing_is_shown_and_the_figure_renders(adata, monkeypatch, tmp_path):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("plt.show was called"))
    adata.layers["lgdist"][3, 0] = np.nan
    figure = pl.completion(adata, ["A", "B"], cmap=mpl.colormaps["cividis"])[0, 0].figure
    figure.savefig(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 5000


def test_maps_of_nothing(adata, tmp_path):
    """A gene without a count, a value in very few spots, one spot, and spots in one place still make a map."""
    adata.X = np.zeros(adata.shape, np.float32)
    adata.layers["lgdist"][:] = 0
    row = pl.completion(adata, "A")[0]
    assert row[0].collections[0].get_clim() == (0, 1)
    assert np.isnan(drawn(row[0])).all()
    std = np.zeros((1000, 1))
    std[5] = 2
    crowd = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(1000)]), var=pd.DataFrame(index=["A"]))
    crowd.layers["lgdist_std"] = std
    crowd.obsm["spatial"] = np.ones((1000, 2))
    assert pl.uncertainty(crowd, "A")[0, 0].collections[0].get_clim() == (0, 2)
    pl.uncertainty(crowd[:1].copy(), "A")[0, 0].figure.savefig(tmp_path / "spot.png")


def test_bad_arguments(adata):
    with pytest.raises(KeyError, match="no 'X', 'Y'.*genes"):
        pl.completion(adata, ["A", "X", "Y"])
    with pytest.raises(ValueError, match="genes is empty"):
        pl.completion(adata, [])
    with pytest.raises(KeyError, match=r"layers\['nope'\].*add_completed_layer"):
        pl.completion(adata, "A", layer="nope")
    with pytest.raises(KeyError, match=r"layers\['nope'\].*add_completed_layer\(return_std=True\)"):
        pl.uncertainty(adata, "A", layer="nope")
    with pytest.raises(KeyError, match=r"layers\['raw'\]"):
        pl.completion(adata, "A", measured_layer="raw")
    with pytest.raises(KeyError, match=r"obs\['depth'\]"):
        pl.completion(adata, "A", size_factor_key="depth")
    with pytest.raises(KeyError, match=r"obsm\['xy'\].*spatial"):
        pl.completion(adata, "A", spatial_key="xy")
    with pytest.raises(KeyError, match=r"obs\['slide'\].*section"):
        pl.completion(adata, "A", library_key="slide")
    with pytest.raises(ValueError, match="library_id is empty"):
        pl.completion(adata, "A", library_key="section", library_id=[])
    with pytest.raises(ValueError, match="library_id has 'three', no section.*'one', 'two'"):
        pl.completion(adata, "A", library_key="section", library_id="three")
    with pytest.raises(ValueError, match="needs library_key"):
        pl.completion(adata, "A", library_id="one")
    adata.var_names = ["A", "A", "C", "D"]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        pl.completion(adata, "A")


@pytest.mark.parametrize("scale", ["counts", "rate"])
def test_layers_on_another_scale_are_not_drawn_as_logarithms(adata, scale):
    adata.uns["lgdist"] = {"package": "lgdist-scvi", "scale": scale}
    for draw in (pl.completion, pl.uncertainty):
        with pytest.raises(ValueError, match=rf"layers.'lgdist.*scale='{scale}'.*key_added=..., scale='log1p'"):
            draw(adata, "A")
    adata.uns["lgdist"]["scale"] = "log1p"
    assert pl.uncertainty(adata, "A").shape == (1, 1)


@pytest.mark.parametrize("draw", [pl.completion, pl.uncertainty])
def test_the_figure_is_saved(adata, draw, saves):
    saves(draw, adata, "A", library_key="section", library_id="two")


def test_measured_completed_and_uncertainty_in_one_call(adata):
    axes = pl.completion(adata, ["C", "A"], uncertainty=True, library_key="section")
    assert axes.shape == (4, 3)
    assert [ax.get_title() for ax in axes[3]] == [
        f"A, {what}, two" for what in ("measured", "completed", "uncertainty")
    ]
    std = adata.layers["lgdist_std"].toarray()
    np.testing.assert_allclose(drawn(axes[3, 2]), std[30:, 0])
    np.testing.assert_allclose(drawn(axes[0, 1]), adata.layers["lgdist"][:30, 2])
    scales = [[ax.collections[0].get_clim() for ax in row] for row in axes]
    assert scales[2] == scales[3]  # of a gene in all sections
    assert scales[2][0] == scales[2][1] != scales[2][2]
    assert scales[2][2][1] == pytest.approx(np.percentile(std[:, 0], 99.5))
    bars = [ax.get_ylabel() for ax in axes[0, 0].figure.axes if ax not in set(axes.ravel())]
    assert sorted(set(bars)) == ["log1p(counts per 10,000)", "standard deviation of\nlog1p(counts per 10,000)"]
    with pytest.raises(KeyError, match=r"layers\['other_std'\].*return_std=True"):
        adata.layers["other"] = adata.layers["lgdist"]
        pl.completion(adata, "A", layer="other", uncertainty=True)


def scale_bar(ax):
    """Length in the unit of the positions, and label."""
    bars = [artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]
    return [(bar.size_bar.get_children()[0].get_width(), bar.txt_label.get_text()) for bar in bars]


def test_scale_bars_where_the_unit_is_known(adata):
    """Panels are 700 wide."""
    assert scale_bar(pl.uncertainty(adata, "A")[0, 0]) == []
    assert scale_bar(pl.uncertainty(adata, "A", scalebar_dx=0.5)[0, 0]) == [(200, "100 \u00b5m")]
    assert scale_bar(pl.uncertainty(adata, "A", scalebar_dx=0.25)[0, 0]) == [(200, "50 \u00b5m")]
    adata.uns["spatial"] = {"two": {"scalefactors": {"microns_per_pixel": 10.0}}}
    for ax in pl.completion(adata, "A", library_key="section", img=False)[1]:
        assert scale_bar(ax) == [(200, "2 mm")]
    assert scale_bar(pl.completion(adata, "A", library_key="section")[0, 0]) == []
    assert scale_bar(pl.completion(adata, "A", library_key="section", scalebar_dx=5)[1, 0]) == [(200, "1 mm")]


def test_scale_bars_hide_no_spot(adata):
    ax = pl.uncertainty(adata, "A", scalebar_dx=1)[0, 0]
    ax.figure.canvas.draw()
    (bar,) = ax.artists
    where = bar.get_window_extent()
    panel, page = ax.get_window_extent(), ax.figure.bbox
    assert where.y1 <= panel.y0 + 1 and where.y0 >= page.y0
    assert panel.x0 < where.x0 and where.x1 <= panel.x1 + 1
