"""Latent representations: code, state and niche."""

import numpy as np
import pytest

from lgdist_scvi import PUBLISHED
from lgdist_scvi.model._alignment import batch_shifts
from lgdist_scvi.model._representations import loading_axes, principal_components


def test_states_are_square_roots_of_expression_along_the_axes_of_the_field(trained):
    state = trained.get_latent_representation(kind="state", silent=True)
    assert state.shape == (trained.adata.n_obs, trained.module.field.n_factors)
    expected = trained.get_completed_expression(scale="rate", return_numpy=True, silent=True)
    basis = np.linalg.qr(trained.module.field.loadings.numpy())[0]
    roots = np.sqrt(expected / trained.module.share.numpy())
    for i, j in ((0, 1), (3, 70), (5, 140)):
        distance = np.linalg.norm((roots[i] - roots[j]) @ basis)
        assert np.linalg.norm(state[i] - state[j]) == pytest.approx(distance, rel=1e-3)


def test_niches_are_means_of_roots_in_the_section(trained):
    adata = trained.adata
    niche = trained.get_latent_representation(kind="niche")
    assert niche.shape == (adata.n_obs, min(12, trained.module.field.n_factors))
    expected = trained.get_completed_expression(scale="rate", return_numpy=True, silent=True)
    roots = np.sqrt(expected * 1e4) @ np.linalg.qr(trained.module.field.loadings.numpy())[0]
    means, sure = np.empty_like(roots), np.empty(adata.n_obs, dtype=bool)
    for i in range(adata.n_obs):
        same = np.flatnonzero(adata.obs["library_id"] == adata.obs["library_id"].iloc[i])
        distance = np.linalg.norm(adata.obsm["spatial"][same] - adata.obsm["spatial"][i], axis=1)
        order = np.argsort(distance, kind="stable")
        means[i] = roots[same[order[:19]]].mean(axis=0)
        sure[i] = distance[order[19]] > 1.001 * distance[order[18]]
    # At equal distances it is open which spot counts.
    assert sure.mean() > 0.2
    means, of_sure = np.c_[means, np.ones(len(means))][sure], niche[sure]
    fit = np.linalg.lstsq(means, of_sure, rcond=None)[0]
    np.testing.assert_allclose(means @ fit, of_sure, atol=1e-3 * niche.std())
    np.testing.assert_allclose(niche.mean(axis=0), 0, atol=1e-6)
    covariance = np.cov(niche.T)
    assert (np.diff(np.diag(covariance)) < 0).all()
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-5 * covariance.max())


@pytest.mark.parametrize("kind", ["code", "state", "niche"])
def test_some_rows_are_those_of_all(trained, kind):
    rows = [31, 2, 17]
    some = trained.get_latent_representation(indices=rows, kind=kind)
    np.testing.assert_allclose(some, trained.get_latent_representation(kind=kind)[rows], atol=1e-5)
    assert len(trained.get_latent_representation(indices=[], kind=kind)) == 0


def test_sections_do_not_change_each_others_states(trained):
    one = trained.adata[trained.adata.obs["library_id"] == "section_1"].copy()
    alone = trained.get_latent_representation(one, kind="state")
    both = trained.get_latent_representation(kind="state")[(trained.adata.obs["library_id"] == "section_1").to_numpy()]
    np.testing.assert_allclose(alone, both, atol=1e-3)


def test_both_are_written(trained):
    adata = trained.adata.copy()
    trained.add_latent_representation(adata)
    np.testing.assert_array_equal(adata.obsm["X_lgdist"], trained.get_latent_representation(kind="state"))
    np.testing.assert_array_equal(adata.obsm["X_lgdist_niche"], trained.get_latent_representation(kind="niche"))


def test_without_a_field_the_code_is_the_state(small):
    model = small.build(small.tissue(n_spots=60), PUBLISHED)
    model.train_autoencoder(**(small.TRAIN | {"max_epochs": 1}))
    code, state, niche = (model.get_latent_representation(kind=kind) for kind in ("code", "state", "niche"))
    np.testing.assert_array_equal(code, state)
    assert niche.shape == (60, 8)


def test_an_unknown_kind_is_refused(trained):
    with pytest.raises(ValueError, match="kind='domain' is unknown; choose one of 'state', 'niche', 'code'"):
        trained.get_latent_representation(kind="domain")


def test_components_keep_the_unit_of_the_values():
    values = np.random.default_rng(0).normal(size=(500, 2)) @ [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    components = principal_components(values, 2)
    np.testing.assert_allclose(components.std(axis=0), values.std(axis=0)[:2], rtol=0.02)


def test_axes_put_the_largest_change_first():
    loadings = np.zeros((6, 3), dtype=np.float32)
    loadings[0, 1], loadings[1, 2] = 5, 1
    expected = np.zeros((6, 3))
    expected[0, 0] = expected[1, 1] = 1
    np.testing.assert_allclose(loading_axes(loadings), expected, atol=1e-6)  # the third has no direction


@pytest.fixture
def two_batches():
    """Three kinds of tissue in other proportions in two batches; in the second, all are shifted, and one kind once more."""
    rng = np.random.default_rng(0)
    kind = np.r_[rng.choice(3, 400, p=[0.7, 0.2, 0.1]), rng.choice(3, 400, p=[0.1, 0.3, 0.6])]
    batch = np.repeat([0, 1], 400)
    centres = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])
    values = centres[kind] + rng.normal(size=(800, 3)) * 0.5
    return values, kind, batch


def test_a_shift_is_found_whatever_the_proportions(two_batches):
    values, _, batch = two_batches
    shift = np.array([1.0, -1.0, 6.0])
    shifts = batch_shifts((values + batch[:, None] * shift).astype(np.float32), batch)
    np.testing.assert_allclose(shifts[1] - shifts[0], shift, atol=0.3)
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=1e-5)


def test_without_a_shift_proportions_stay(two_batches):
    values, _, batch = two_batches
    np.testing.assert_allclose(batch_shifts(values.astype(np.float32), batch), 0, atol=0.15)


def test_what_is_different_in_one_kind_stays(two_batches):
    values, kind, batch = two_batches
    changed = values + ((kind == 1) & (batch == 1))[:, None] * np.array([0.0, 0.0, 2.0])
    shifts = batch_shifts(changed.astype(np.float32), batch)
    after = changed - shifts[batch]
    left = [after[(kind == 1) & (batch == one)].mean(axis=0)[2] for one in (0, 1)]
    assert left[1] - left[0] > 1.2


def test_one_batch_is_not_shifted():
    np.testing.assert_array_equal(batch_shifts(np.ones((5, 2), dtype=np.float32), np.zeros(5, dtype=np.intp)), 0)


def test_aligned_states_are_shifted_by_section(trained):
    state, aligned = (trained.get_latent_representation(kind="state", aligned=one) for one in (False, True))
    difference = state - aligned
    section = (trained.adata.obs["library_id"] == "section_1").to_numpy()
    for spots in (section, ~section):
        np.testing.assert_allclose(
            difference[spots], np.broadcast_to(difference[spots][0], difference[spots].shape), atol=1e-4
        )
    assert np.abs(difference).max() > 1e-3
    assert np.isfinite(trained.get_latent_representation(kind="niche", aligned=True)).all()


def test_alignment_does_not_touch_what_is_completed(trained):
    before = trained.get_completed_expression(return_numpy=True)
    trained.add_latent_representation(aligned=True)
    np.testing.assert_array_equal(trained.get_completed_expression(return_numpy=True), before)


def test_codes_cannot_be_aligned(trained):
    with pytest.raises(ValueError, match="aligned=True needs kind='state' or kind='niche'"):
        trained.get_latent_representation(kind="code", aligned=True)
