"""Latent representations: code, state and niche."""

import numpy as np
import pytest

from lgdist_scvi import PUBLISHED
from lgdist_scvi.model._representations import log_rate_coordinates, standardised_components
from lgdist_scvi.module._field_codes import solve_field


def test_distances_of_states_are_those_of_log_rates(trained):
    state = trained.get_latent_representation(kind="state")
    assert state.shape == (trained.adata.n_obs, trained.module.field.n_factors)
    view = trained._view()
    solve_field(trained.module, view)
    rates = view.field[:, 0] @ trained.module.field.loadings.numpy().T
    for i, j in ((0, 1), (3, 70), (5, 140)):
        expected = np.sqrt(np.mean((rates[i] - rates[j]) ** 2))
        assert np.linalg.norm(state[i] - state[j]) == pytest.approx(expected, rel=1e-3)


def test_niches_are_means_of_states_in_the_section(trained):
    adata = trained.adata
    state, niche = (trained.get_latent_representation(kind=kind) for kind in ("state", "niche"))
    assert niche.shape == (adata.n_obs, 15)
    means = np.empty_like(state)
    for i in range(adata.n_obs):
        same = np.flatnonzero(adata.obs["library_id"] == adata.obs["library_id"].iloc[i])
        distance = np.linalg.norm(adata.obsm["spatial"][same] - adata.obsm["spatial"][i], axis=1)
        means[i] = state[same[np.argsort(distance, kind="stable")[:19]]].mean(axis=0)
    # At equal distances it is open which spot counts: compare what they explain of each other.
    fit = np.linalg.lstsq(np.c_[means, np.ones(len(means))], niche[:, :3], rcond=None)[0]
    np.testing.assert_allclose(np.c_[means, np.ones(len(means))] @ fit, niche[:, :3], atol=0.35)
    np.testing.assert_allclose(niche.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(niche.std(axis=0), 1, atol=1e-3)


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
    with pytest.raises(ValueError, match="kind='domain' is unknown; choose one of 'code', 'state', 'niche'"):
        trained.get_latent_representation(kind="domain")


def test_directions_without_variance_are_zero():
    values = np.random.default_rng(0).normal(size=(50, 2)) @ [[1.0, 0.0, 2.0], [0.0, 1e-3, 0.0]]
    components = standardised_components(values, 3)
    np.testing.assert_allclose(components.std(axis=0), [1, 1e-9, 0], atol=1.0)
    np.testing.assert_allclose(components.std(axis=0)[[0, 2]], [1, 0], atol=1e-3)
    assert np.isfinite(standardised_components(np.ones((4, 3)), 2)).all()


def test_coordinates_put_the_largest_change_first():
    loadings = np.zeros((6, 3), dtype=np.float32)
    loadings[0, 1], loadings[1, 2] = 5, 1
    coordinates = log_rate_coordinates(np.eye(3, dtype=np.float32), loadings)
    np.testing.assert_allclose(coordinates[1], [5 / np.sqrt(6), 0, 0], atol=1e-5)
    np.testing.assert_allclose(coordinates[0], 0, atol=1e-5)
