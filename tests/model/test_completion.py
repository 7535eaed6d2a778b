"""What the read-outs return, and what is written to AnnData."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from lgdist_scvi import PUBLISHED
from lgdist_scvi.metrics import count_distribution
from lgdist_scvi.model import _evaluation, _layers, _training
from lgdist_scvi.module._denoiser import Denoiser
from lgdist_scvi.module._field_codes import solve_field
from lgdist_scvi.module._posterior import draw_noise, predict
from lgdist_scvi.train._statistics import clean_codes


def read(model, small, **options):
    return model.get_completed_expression(**(small.READ | {"return_numpy": True} | options))


@pytest.fixture(scope="module")
def counts(trained):
    """Counts, where they were observed, and where they were detected."""
    values, observed = trained.adata.layers["counts"].toarray(), trained.adata.layers["observed"]
    return values, observed, observed & (values > 0)


@pytest.fixture(scope="module")
def depth(trained):
    return trained._view().depth[:, None]


def test_rows_and_columns(trained, small):
    table = trained.get_completed_expression(**small.READ)
    adata = trained.adata
    assert table.shape == adata.shape
    assert table.index.equals(adata.obs_names)
    assert table.columns.equals(adata.var_names)
    assert set(table.dtypes) == {np.dtype("float32")}
    assert np.isfinite(table.to_numpy()).all()
    assert (table.to_numpy() >= 0).all()


def test_some_rows_in_any_order(trained, small):
    full = trained.get_completed_expression(**small.READ)
    rows = np.random.default_rng(0).permutation(trained.adata.n_obs)[:70]
    for indices in (rows, list(rows), rows.astype(np.uint16)):
        some = trained.get_completed_expression(indices=indices, **small.READ)
        assert some.index.equals(trained.adata.obs_names[rows])
        np.testing.assert_allclose(some, full.iloc[rows], atol=1e-5)
    mask = np.isin(np.arange(trained.adata.n_obs), rows)
    some = trained.get_completed_expression(indices=mask, **small.READ)
    assert some.index.equals(trained.adata.obs_names[mask])
    np.testing.assert_allclose(some, full[mask], atol=1e-5)
    latent = trained.get_latent_representation()
    np.testing.assert_allclose(trained.get_latent_representation(indices=rows), latent[rows], atol=1e-5)


def test_some_genes_in_any_order(trained, small):
    full, std = trained.get_completed_expression(return_std=True, **small.READ)
    genes = list(trained.adata.var_names[[31, 2, 17]])
    some, some_std = trained.get_completed_expression(gene_list=genes, return_std=True, **small.READ)
    pd.testing.assert_frame_equal(some, full[genes])
    pd.testing.assert_frame_equal(some_std, std[genes])
    assert some_std.index.equals(full.index)


def test_chosen_genes_alone_are_decoded(trained, small, monkeypatch):
    decoded = []
    decode = type(trained.module).decode

    def spy(module, code, batch, genes):
        decoded.extend(genes.tolist())
        return decode(module, code, batch, genes)

    monkeypatch.setattr(type(trained.module), "decode", spy)
    genes = [31, 2]
    trained.get_completed_expression(gene_list=list(trained.adata.var_names[genes]), **small.READ)
    assert set(decoded) == set(genes)


def test_arrays_equal_tables(trained, small):
    np.testing.assert_array_equal(read(trained, small), trained.get_completed_expression(**small.READ).to_numpy())


def test_scales_agree(trained, small, depth):
    options = {"return_std": True}
    (log, log_std), (rate, rate_std), (counted, counted_std) = (
        read(trained, small, scale=scale, **options) for scale in ("log1p", "rate", "counts")
    )
    np.testing.assert_allclose(log, np.log1p(rate * 1e4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(counted, rate * depth, rtol=1e-5)
    np.testing.assert_allclose(counted_std, rate_std * depth, rtol=1e-5)
    np.testing.assert_allclose(log_std, rate_std * 1e4 / (1 + rate * 1e4), rtol=1e-4)


@pytest.mark.parametrize("read_out", ["expected", "detected"])
def test_detected_entries_stay_as_measured(trained, small, counts, depth, read_out):
    values, _, detected = counts
    completed = read(trained, small, read_out=read_out, keep_observed=True)
    measured = np.log1p(values / depth * 1e4)
    np.testing.assert_allclose(completed[detected], measured[detected], rtol=1e-6)
    assert (completed[~detected] > 0).all()
    at_depth = read(trained, small, read_out=read_out, keep_observed=True, scale="counts")
    np.testing.assert_allclose(at_depth[detected], values[detected], rtol=1e-6)


def test_completed_entries_are_posterior_means(trained, small, counts, depth):
    values, observed, _ = counts
    noise = draw_noise(2, small.OPTIONS["n_latent"], 0)
    view = trained._view(share=trained.module.share.numpy())
    solve_field(trained.module, view)
    batch = view.gather(np.arange(trained.adata.n_obs))
    prediction, module = predict(trained.module, batch, noise, 2), trained.module
    means, unlike = [], 1.0
    for rate, size in ((prediction.network, module.dispersion), (prediction.field, module.field.dispersion)):
        mu, r = rate.numpy() * depth, size.numpy()
        means.append(np.where(observed, mu * (values + r) / (mu + r), mu))
        unlike = unlike * np.where(observed, r / (mu + r), 1)
    weight = prediction.weight.numpy()
    assert ((weight > 0) & (weight <= 1)).all()
    mu = prediction.rate.numpy() * depth
    size = module.dispersion.numpy() ** (1 - weight) * module.field.dispersion.numpy() ** weight
    own = np.where(observed, mu / (mu + size), 0)
    lost = weight * (1 - weight) * unlike * module.field.disagreement.numpy() / 2
    expected = means[0] ** (1 - weight) * means[1] ** weight * np.exp(lost + (1 - own) * float(module.field.shift))
    completed = read(trained, small, scale="counts")
    np.testing.assert_allclose(completed, expected, rtol=1e-4)
    # Without the own count an observed zero and an unobserved entry would be completed alike.
    zero = observed & (values == 0)
    assert (completed[zero] < mu[zero]).all()
    kept = read(trained, small, scale="counts", keep_observed=True)
    np.testing.assert_allclose(kept[zero], completed[zero], rtol=1e-5)


def test_standard_deviation(trained, small, counts):
    values, observed, detected = counts
    _, std = read(trained, small, return_std=True, scale="rate", keep_observed=True)
    assert np.isfinite(std).all()
    assert (std[detected] == 0).all()
    assert (std[~detected] > 0).all()
    completed, around = read(trained, small, return_std=True, scale="rate")
    assert (around > 0).all()
    # An observation narrows what is known of a rate: half the data hidden is less certain.
    relative = around / completed
    assert np.median(relative[~observed]) > np.median(relative[detected])


def test_count_quantiles(trained, small, depth):
    names = list(trained.adata.var_names[[3, 1]])
    options = {"n_samples": 2, "n_steps": 2, "silent": True}
    median = trained.get_count_quantiles(quantiles=[0.5], gene_list=names, indices=[5, 2], **options)[0.5]
    assert list(median.columns) == names
    assert list(median.index) == list(trained.adata.obs_names[[5, 2]])
    mean, std = trained.get_completed_expression(scale="rate", return_std=True, return_numpy=True, **options)
    for given, at in ((None, depth), (5e4, np.full_like(depth, 5e4))):
        quantiles = trained.get_count_quantiles(depth=given, **options)
        assert list(quantiles) == [0.025, 0.5, 0.975]
        expected = count_distribution(mean * at, std * at)
        for q, table in quantiles.items():
            # A quantile may fall on a step of the distribution, where rounding decides.
            assert (table.to_numpy() == expected.ppf(q)).mean() > 0.999
    assert (quantiles[0.025] <= quantiles[0.975]).all(axis=None)
    with pytest.raises(ValueError, match=r"between 0 and 1, got \[1.2\]"):
        trained.get_count_quantiles(quantiles=[0.5, 1.2])
    assert list(trained.get_count_quantiles(quantiles=np.float32(0.5), gene_list=names, **options)) == [0.5]
    with pytest.raises(ValueError, match=r"between 0 and 1, got \[None\]"):
        trained.get_count_quantiles(quantiles=None)
    for value in (0, np.inf, np.nan, -1.0, "many"):
        with pytest.raises(ValueError, match="depth=.* must be a number above 0"):
            trained.get_count_quantiles(depth=value)
    with pytest.raises(ValueError, match="depth=1e[+]300 is too large for a number of counts"):
        trained.get_count_quantiles(depth=1e300)


def test_minibatches_do_not_matter(trained, small):
    whole = read(trained, small, batch_size=1000)
    for size in (7, 64):
        np.testing.assert_allclose(read(trained, small, batch_size=size), whole, atol=1e-5)
    one_by_one = read(trained, small, batch_size=1, indices=range(60, 80))
    np.testing.assert_allclose(one_by_one, whole[60:80], atol=1e-5)
    np.testing.assert_allclose(
        trained.get_latent_representation(batch_size=7), trained.get_latent_representation(), atol=1e-5
    )


def test_seed_of_the_sampling(trained, small):
    first = read(trained, small, seed=1)
    torch.manual_seed(99)
    assert first.tobytes() == read(trained, small, seed=1).tobytes()
    assert first.tobytes() != read(trained, small, seed=2).tobytes()


def test_odd_and_many_samples(trained, small):
    many = read(trained, small, n_samples=16)
    other = read(trained, small, n_samples=15, seed=3)
    assert np.abs(many - other).max() < 0.5
    noise = draw_noise(5, 8, 0)
    assert noise.shape == (1, 5, 8)
    torch.testing.assert_close(noise[:, 1], -noise[:, 0])


def test_without_samples_the_autoencoder_predicts(small):
    model = small.build(small.tissue())
    model.train_autoencoder(**small.TRAIN)
    values, std = read(model, small, n_samples=0, return_std=True)
    assert np.isfinite(values).all() and np.isfinite(std).all()
    assert model.get_latent_representation(kind="code").shape == (150, 8)
    assert np.isfinite(model.evaluate_completion(n_samples=0, silent=True).to_numpy()).any()
    with pytest.raises(RuntimeError, match=r"diffusion has not been trained.*train_diffusion\(\).*n_samples=0"):
        model.get_completed_expression(n_samples=4)


@pytest.mark.parametrize(("options", "used"), [({}, 0), ({"n_factors": 0}, 4), ({"n_rounds": 2}, 4)])
def test_samples_are_drawn_where_there_is_no_field(small, options, used):
    """And the diffusion is trained there by default, of as many steps as ever."""
    model = small.build(small.tissue(n_spots=100, n_genes=12), options)
    trained = []
    model.train_autoencoder(**small.TRAIN)
    model.train_autoencoder = lambda *_, **__: None
    model.train_diffusion = lambda epochs, **_: trained.append(epochs)
    model.train(**{name: value for name, value in small.TRAIN.items() if name != "max_epochs"})
    assert trained == [None] * bool(used)
    model.train(**small.TRAIN)
    model.train(diffusion_max_epochs=3)
    assert trained[-2:] == [2, 3]
    assert model._reading().n_samples == used and model._reading(2).n_samples == 2


def test_untrained(small):
    model = small.build(small.tissue())
    for method in (model.get_completed_expression, model.get_latent_representation, model.evaluate_completion):
        with pytest.raises(RuntimeError, match=r"autoencoder has not been trained: call model.train\(\) first"):
            method()
    with pytest.raises(RuntimeError, match="has not been trained"):
        model.add_completed_layer()
    assert "lgdist" not in model.adata.layers


def test_given_detection_there_is_at_least_one_count(trained, small, depth):
    one_count = np.log1p(1e4 / depth)
    for n_samples in (0, 2):
        detected = read(trained, small, read_out="detected", n_samples=n_samples)
        assert (detected >= one_count - 1e-5).all()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scale": "log2"}, ValueError, "scale='log2' is unknown; choose one of 'log1p', 'rate', 'counts'"),
        ({"read_out": "mean"}, ValueError, "read_out='mean' is unknown; choose one of 'expected', 'detected'"),
        ({"read_out": "detected", "return_std": True}, ValueError, "return_std"),
        ({"gene_list": ["gene_1", "EPCAM"]}, ValueError, "1 genes of `gene_list`.*EPCAM"),
        ({"gene_list": "gene_1"}, ValueError, r"did you mean \['gene_1'\]"),
        ({"indices": [0, 150]}, ValueError, r"0\.\.149"),
        ({"indices": [-1]}, ValueError, r"0\.\.149"),
        ({"indices": [0.5]}, ValueError, "row numbers"),
        ({"indices": [True, False]}, ValueError, r"shape \(2,\)"),
        ({"n_draws": 3}, TypeError, "n_draws"),
        ({"n_samples": -1}, ValueError, "n_samples"),
        ({"n_steps": 0}, ValueError, "n_steps"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_unusable_arguments(trained, small, options, error, match):
    with pytest.raises(error, match=match):
        trained.get_completed_expression(**(small.READ | options))


@pytest.fixture
def fresh(small):
    adata = small.hide(small.tissue(n_libraries=2))
    adata.layers["counts"] = adata.layers["counts"].astype(np.float32)
    return small.fit(small.build(adata, library_key="library_id", observed_layer="observed", batch_key="domain"))


def test_completed_layer(fresh, small):
    adata = fresh.adata
    before = adata.copy()
    values, std = read(fresh, small, return_std=True, seed=4)
    assert fresh.add_completed_layer(return_std=True, seed=4, **small.READ) is None
    np.testing.assert_array_equal(adata.layers["lgdist"], values)
    np.testing.assert_array_equal(adata.layers["lgdist_std"], std)
    imputed = adata.layers["lgdist_imputed"]
    assert imputed.dtype == bool
    measured = (before.layers["counts"].toarray() > 0) & before.layers["observed"]
    np.testing.assert_array_equal(imputed, ~measured)
    provenance = adata.uns["lgdist"]
    assert {"seed": 4, "n_samples": 2, "n_steps": 2, "scale": "log1p", "read_out": "expected"}.items() <= dict(
        provenance
    ).items()
    assert provenance["package"] == "lgdist-scvi" and provenance["version"]
    # Nothing else has changed.
    assert (adata.X != before.X).nnz == 0
    assert (adata.layers["counts"] != before.layers["counts"]).nnz == 0
    np.testing.assert_array_equal(adata.layers["observed"], before.layers["observed"])
    assert set(adata.layers) - set(before.layers) == {"lgdist", "lgdist_std", "lgdist_imputed"}
    assert set(adata.uns) - set(before.uns) == {"lgdist"}
    assert adata.obs.equals(before.obs)


def test_standard_deviation_of_an_earlier_completion_does_not_stay(fresh, small, tmp_path):
    fresh.add_completed_layer(return_std=True, **small.READ)
    fresh.write_completed(tmp_path / "a.h5ad", **small.READ)
    assert "lgdist_std" not in ad.read_h5ad(tmp_path / "a.h5ad").layers
    fresh.add_completed_layer(seed=1, **small.READ)
    assert "lgdist_std" not in fresh.adata.layers and {"lgdist", "lgdist_imputed"} <= set(fresh.adata.layers)


def test_layers_are_replaced_together(fresh, small, monkeypatch):
    fresh.add_completed_layer(return_std=True, scale="counts", **small.READ)
    before = {name: fresh.adata.layers[name].copy() for name in ("lgdist", "lgdist_imputed", "lgdist_std")}

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(_layers, "imputed", fail)
    with pytest.raises(MemoryError):
        fresh.add_completed_layer(**small.READ)
    for name, values in before.items():
        np.testing.assert_array_equal(fresh.adata.layers[name], values)


def test_completed_layer_by_another_name(fresh, small):
    other = small.hide(small.tissue(n_spots=40, seed=3))
    assert fresh.add_completed_layer(other, key_added="filled", keep_observed=True, **small.READ) is None
    assert {"filled", "filled_imputed"} <= set(other.layers)
    assert other.uns["filled"]["keep_observed"] is True
    assert "filled" not in fresh.adata.layers and "filled" not in fresh.adata.uns
    with pytest.raises(TypeError):
        fresh.add_completed_layer(return_numpy=True)


def equal(first, second):
    if isinstance(first, dict):
        assert set(first) == set(second)
        for key in first:
            equal(first[key], second[key])
    elif hasattr(first, "nnz"):
        assert (first != second).nnz == 0 and first.nnz == second.nnz
    elif isinstance(first, pd.DataFrame):
        pd.testing.assert_frame_equal(first, second)
    else:
        np.testing.assert_array_equal(first, second)


def test_h5ad_round_trip(fresh, small, tmp_path):
    adata = fresh.adata
    fresh.add_completed_layer(return_std=True, **small.READ)
    adata.obsm["X_lgdist"] = fresh.get_latent_representation()
    adata.write_h5ad(tmp_path / "completed.h5ad")
    back = ad.read_h5ad(tmp_path / "completed.h5ad")
    written = {
        "obsp": ["lgdist_connectivities", "lgdist_distances"],
        "uns": ["lgdist", "lgdist_neighbors"],
        "layers": ["lgdist", "lgdist_std", "lgdist_imputed", "counts"],
        "obsm": ["X_lgdist"],
    }
    for attribute, keys in written.items():
        assert set(keys) <= set(getattr(adata, attribute))
        assert set(getattr(back, attribute)) == set(getattr(adata, attribute))
        for key in keys:
            equal(getattr(adata, attribute)[key], getattr(back, attribute)[key])
    assert back.layers["lgdist_imputed"].dtype == bool
    assert back.obs_names.equals(adata.obs_names) and list(back.obs) == list(adata.obs)
    np.testing.assert_array_equal(read(fresh, small, adata=back), read(fresh, small))
    again = small.fit(small.build(back, library_key="library_id", observed_layer="observed", batch_key="domain"))
    np.testing.assert_array_equal(read(again, small), read(fresh, small))


def test_scanpy_goes_on_from_here(fresh, small):
    sc = pytest.importorskip("scanpy")
    pytest.importorskip("igraph")
    adata = fresh.adata
    fresh.add_completed_layer(**small.READ)
    adata.obsm["X_lgdist"] = fresh.get_latent_representation()
    sc.pp.pca(adata, layer="lgdist", n_comps=10)
    for key in ("X_pca", "X_lgdist"):
        sc.pp.neighbors(adata, use_rep=key, key_added=key)
        sc.tl.leiden(
            adata, neighbors_key=key, key_added=f"leiden_{key}", flavor="igraph", n_iterations=2, directed=False
        )
        assert adata.obs[f"leiden_{key}"].nunique() > 1


def test_image_helps_where_all_genes_are_hidden(trained, small):
    """The image reaches the prediction, and a spot without any gene is completed from it and its neighbours."""
    other = small.hide(small.tissue(n_libraries=2))
    other.layers["observed"][5] = False
    before = read(trained, small, adata=other, indices=[5])
    other.obsm["X_image"] = other.obsm["X_image"].copy()
    other.obsm["X_image"][5] += 3
    after = read(trained, small, adata=other, indices=[5])
    assert np.isfinite(before).all()
    assert not np.array_equal(before, after)


def test_libraries_do_not_mix(small):
    adata = small.tissue(n_libraries=2)
    model = small.fit(small.build(adata, library_key="library_id"))
    second = (adata.obs["library_id"] == "section_2").to_numpy()
    changed = adata.copy()
    changed.layers["counts"][second] = changed.layers["counts"][second][::-1]
    options = {"indices": np.flatnonzero(~second)}
    np.testing.assert_allclose(
        read(model, small, adata=changed, **options), read(model, small, **options), rtol=1e-4, atol=1e-4
    )
    alone = adata[~second].copy()
    np.testing.assert_allclose(read(model, small, adata=alone), read(model, small, **options), rtol=1e-4, atol=1e-4)


def test_target_genes_weigh_more(small):
    adata = small.tissue()
    adata.var["target"] = np.arange(adata.n_vars) < 10
    model = small.build(adata, target_genes_key="target")
    weight = model.module.gene_weight.numpy()
    assert weight[:10].min() == pytest.approx(9 * weight[10:].max(), rel=1e-5)
    assert weight.mean() == pytest.approx(1)


@pytest.fixture(scope="module")
def published(small):
    return small.fit(small.build(small.tissue(), PUBLISHED))


def test_published_convention(published, small):
    assert set(published.history) == {"autoencoder", "diffusion", "diffusion_round_2"}
    assert all(len(metrics["train_loss"]) == 2 for metrics in published.history.values())
    # The loss is of detected log values alone.
    assert "squared_error_train" in published.history["autoencoder"]
    assert not any("likelihood" in name for name in published.history["autoencoder"])
    adata = published.adata
    counts = adata.layers["counts"].toarray()
    view = published._view()
    np.testing.assert_array_equal(view.hidden[np.arange(view.n_spots)], counts == 0)
    completed = read(published, small, keep_observed=True)
    depth = counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(completed[counts > 0], np.log1p(counts / depth * 1e4)[counts > 0], rtol=1e-6)
    # Zeros are taken for missing: they get what a detected entry has, at least about a count.
    assert (completed[counts == 0] > 0.5 * np.log1p(1e4 / depth).min()).all()
    batch = view.gather(np.arange(view.n_spots))
    assert not published.module.condition.visible(batch).any()
    assert not published.module.condition.draw(batch, "diffusion", training=True)[1].any()
    assert np.isfinite(published.evaluate_completion(**small.READ).to_numpy()).all()


def test_published_convention_sees_neighbors_only(published, small):
    changed = published.adata.copy()
    counts = changed.layers["counts"].tolil()
    own = counts[20].toarray()[0]
    counts[20] = np.where(own > 0, own * 3 + 1, 0)
    changed.layers["counts"] = counts.tocsr()
    before, after = (published.get_latent_representation(a) for a in (None, changed))
    np.testing.assert_allclose(after[20], before[20], atol=1e-5)
    near = published.adata.obsp["lgdist_connectivities"][:, 20].nonzero()[0]
    assert (np.abs(after[near] - before[near]).max(axis=1) > 1e-5).all()


def test_rounds_teach_with_the_completion(small, monkeypatch):
    model = small.build(small.tissue(), PUBLISHED)
    taught, clean = [], []
    loss, codes = Denoiser.loss, _training.clean_codes

    def spy_on_loss(denoiser, clean, *arguments):
        if denoiser.training:
            taught[-1].append(clean)
        return loss(denoiser, clean, *arguments)

    def spy_on_codes(module, view, completed):
        taught.append([])
        clean.append((completed is not None, codes(module, view, completed)))
        return clean[-1][1]

    monkeypatch.setattr(Denoiser, "loss", spy_on_loss)
    monkeypatch.setattr(_training, "clean_codes", spy_on_codes)
    small.fit(model)
    assert [completed for completed, _ in clean] == [False, True]
    for batches, (_, known) in zip(taught, clean, strict=True):
        shown = torch.cat(batches)
        nearest = (shown[:, None] - torch.from_numpy(known)).abs().amax(dim=2).amin(dim=1)
        assert len(shown) and (nearest < 1e-5).all()
    # The first round's teachers know the detected entries only.
    assert np.abs(clean[1][1] - clean[0][1]).mean() > 0.01


def test_clean_codes_are_those_of_all_that_may_be_seen(trained):
    view = trained._view(share=trained.module.share.numpy())
    expected = trained.get_latent_representation(kind="code")
    np.testing.assert_allclose(clean_codes(trained.module, view), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "mse"}, "'counts', 'log'"),
        ({"condition": "none"}, "'neighborhood', 'neighbors'"),
        ({"zeros_missing": True}, "loss='log'"),
        ({"n_rounds": 0}, "at least 1"),
        ({"n_heads": 3}, "multiple of n_heads"),
    ],
)
def test_unusable_options(small, options, match):
    with pytest.raises(ValueError, match=match):
        small.build(small.tissue(), options)


def test_scores(trained, small):
    scores = trained.evaluate_completion(**small.READ)
    assert list(scores.index) == ["lgdist", "gene mean", "spatial neighbours"]
    assert list(scores.columns) == ["mse_detected", "pcc_gene", "d2", "n_entries"]
    assert scores.loc["gene mean", "d2"] == pytest.approx(0, abs=1e-6)
    assert scores["n_entries"].nunique() == 1
    new = small.hide(small.tissue(n_spots=60, seed=2))
    first = trained.evaluate_completion(new, fraction=0.2, **small.READ)
    assert first.equals(trained.evaluate_completion(new, fraction=0.2, **small.READ))
    assert first["n_entries"].iloc[0] == pytest.approx(0.2 * 0.85 * 60 * 40, rel=0.15)


@pytest.mark.parametrize("own", [True, False])
def test_scored_entries_are_hidden(trained, small, monkeypatch, own):
    views = []

    class Spy(_evaluation.Reader):
        def __init__(self, module, view, reading):
            views.append(view)
            super().__init__(module, view, reading)

    monkeypatch.setattr(_evaluation, "Reader", Spy)
    adata = trained.adata if own else small.hide(small.tissue(n_spots=60, seed=2))
    scores = trained.evaluate_completion(None if own else adata, fraction=0.2, **small.READ)
    observed = adata.layers["observed"]
    for view in views:
        hidden = view.hidden[np.arange(view.n_spots)]
        assert (hidden & observed).sum() == scores["n_entries"].iloc[0] > 0
        assert not view.counts.toarray()[hidden].any()
        # Rates are relative to the shares that the model was trained with.
        np.testing.assert_allclose(view.share, trained.module.share)
    assert views
    if own:
        held_out = trained._training_data(0.1, 64).held_out.toarray()
        np.testing.assert_array_equal(hidden & observed, held_out)


def test_scores_of_new_data_do_not_depend_on_the_cache(trained, small, monkeypatch):
    new = small.hide(small.tissue(n_spots=60, seed=2))
    cached = trained.evaluate_completion(new, **small.READ)
    monkeypatch.setattr("lgdist_scvi.data._pooling.CACHE_BYTES", 0)
    np.testing.assert_allclose(trained.evaluate_completion(new, **small.READ), cached, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_samples": -1}, ValueError, "n_samples=-1 must be a whole number of at least 0"),
        ({"n_samples": 2.5}, ValueError, "n_samples=2.5 must be a whole number"),
        ({"n_samples": True}, ValueError, "n_samples=True must be a whole number"),
        ({"n_steps": 0}, ValueError, "n_steps=0 must be a whole number of at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be a whole number of at least 1"),
        ({"seed": -1}, ValueError, "seed=-1 must be a whole number of at least 0"),
        ({"scale": "cpm"}, ValueError, "scale='cpm' is unknown; choose one of 'log1p', 'rate', 'counts'"),
        ({"read_out": "mean"}, ValueError, "read_out='mean' is unknown"),
        ({"indices": [1.0]}, ValueError, "`indices` must be a list of row numbers"),
        ({"indices": [-1]}, ValueError, r"must lie in 0\.\.149, got -1"),
        ({"indices": [True, False]}, ValueError, "one entry per spot"),
        ({"indices": "spot"}, ValueError, "`indices` must be a list of row numbers"),
        ({"gene_list": "gene_1"}, ValueError, r"did you mean \['gene_1'\]"),
        ({"gene_list": ["EPCAM"]}, ValueError, r"1 genes of `gene_list` are not in adata.var_names: \['EPCAM'\]"),
        ({"adata": "section.h5ad"}, TypeError, "Expected an AnnData, got str"),
        ({"n_sample": 3}, TypeError, "n_sample"),
    ],
)
def test_arguments_out_of_range(trained, options, error, message):
    with pytest.raises(error, match=message):
        trained.get_completed_expression(**({"silent": True} | options))


@pytest.mark.parametrize("quantiles", [[0.5, 2.0], [0.0], [float("nan")], ["median"], [None]])
def test_quantiles_out_of_range(trained, quantiles):
    with pytest.raises(ValueError, match=r"Quantiles must be numbers between 0 and 1, got \["):
        trained.get_count_quantiles(quantiles=quantiles, silent=True)


@pytest.mark.parametrize("fraction", [-0.1, 1, "half", None])
def test_fraction_out_of_range(trained, fraction):
    with pytest.raises(ValueError, match=r"fraction=.* must be in \[0, 1\)"):
        trained.evaluate_completion(trained.adata[::2].copy(), fraction=fraction, silent=True)


def test_nothing_asked_for(trained, small):
    assert trained.get_completed_expression(indices=[], **small.READ).shape == (0, 40)
    assert trained.get_completed_expression(gene_list=[], **small.READ).shape == (150, 0)
    assert trained.get_latent_representation(indices=[]).shape == (0, 4)


@pytest.mark.parametrize("own", [True, False])
def test_held_out_entries_are_those_that_are_scored(trained, small, own):
    adata = None if own else small.hide(small.tissue(n_spots=60, seed=2))
    source = trained.adata if own else adata
    options = {"fraction": 0.2, **small.READ}
    entries, scores = trained.get_held_out_entries(adata, **options), trained.evaluate_completion(adata, **options)
    assert len(entries) == scores.loc["lgdist", "n_entries"] and not entries.duplicated(["spot", "gene"]).any()
    place = (source.obs_names.get_indexer(entries["spot"]), source.var_names.get_indexer(entries["gene"]))
    assert source.layers["observed"][place].all()
    np.testing.assert_array_equal(entries["count"], np.asarray(source.layers["counts"].tocsr()[place]).ravel())
    found = entries[entries["count"] > 0]
    error = found["detected"] - np.log1p(found["count"] / found["depth"] * 1e4)
    assert (error**2).mean() == pytest.approx(scores.loc["lgdist", "mse_detected"], rel=1e-4)
    assert (entries["std"] > 0).all() and (entries["expected"] > 0).all()
    # What is predicted does not depend on what is there.
    if not own:
        changed = adata.copy()
        counts = changed.layers["counts"].tolil()
        counts[place] = 7
        changed.layers["counts"] = counts.tocsr()
        again = trained.get_held_out_entries(changed, **options)
        assert (again["count"] == 7).all() and again["spot"].equals(entries["spot"])
        for column in ("depth", "expected", "std", "detected"):
            np.testing.assert_allclose(again[column], entries[column], rtol=1e-4)
