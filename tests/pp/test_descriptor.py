"""The descriptor of stains: what its features are, and that it tells patches apart by what a pathologist sees."""

import numpy as np
import pytest
import torch

from lgdist_scvi.pp import StainDescriptor

HAEMATOXYLIN, EOSIN, RESIDUAL = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
N_PER_WINDOW = 40
# Features of a window: means, standard deviations and five quantiles of four densities, details of three in four bands.
MEAN, STD, QUANTILES, DETAIL = slice(0, 4), slice(4, 8), slice(8, 28), slice(28, 40)


def describe(patches):
    patches = torch.as_tensor(np.asarray(patches), dtype=torch.float32)
    return StainDescriptor()(patches).numpy()


def stained(haematoxylin=0.0, eosin=0.0, side=32):
    """One patch that absorbs so much of each stain, a number or ``(side, side)``."""
    stains = [stain / np.linalg.norm(stain) for stain in (HAEMATOXYLIN, EOSIN)]
    density = sum(
        np.broadcast_to(amount, (side, side)) * stain[:, None, None]
        for amount, stain in zip((haematoxylin, eosin), stains, strict=True)
    )
    return (np.exp(-density) * 256 - 1) / 255


def noise(n=3, side=32, seed=0):
    return np.random.default_rng(seed).uniform(0.05, 1, (n, 3, side, side))


@pytest.mark.parametrize("side", [16, 17, 50, 128])
@pytest.mark.parametrize("n", [1, 3])
def test_shape(side, n):
    features = describe(noise(n, side))
    assert features.shape == (n, 120)
    assert np.isfinite(features).all()


@pytest.mark.parametrize("value", [0, 1e-6, 0.5, 1])
def test_constant_patch_has_no_detail(value):
    features = describe(np.full((2, 3, 128, 128), value)).reshape(2, 3, N_PER_WINDOW)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[..., STD], 0, atol=1e-5)
    np.testing.assert_allclose(features[..., DETAIL], 0, atol=1e-5)
    # White absorbs nothing, and black the most that 8 bits can tell.
    np.testing.assert_allclose(features[..., 3], -np.log((value * 255 + 1) / 256), rtol=1e-5, atol=1e-6)


def test_white_patch_is_zero():
    np.testing.assert_allclose(describe(np.ones((1, 3, 64, 64))), 0, atol=1e-6)


def test_densities_are_those_of_the_stains():
    features = describe([stained(h, e) for h, e in [(0, 0), (0.5, 0), (0, 0.7), (1.2, 0.3)]])
    np.testing.assert_allclose(features[:, 0], [0, 0.5, 0, 1.2], atol=1e-4)
    np.testing.assert_allclose(features[:, 1], [0, 0, 0.7, 0.3], atol=1e-4)
    np.testing.assert_allclose(features[:, 2], 0, atol=1e-4)


def test_bluer_nuclei_raise_the_first_feature():
    pink, purple, blue = ([0.95, 0.65, 0.80], [0.65, 0.45, 0.75], [0.35, 0.30, 0.65])
    first = describe([np.broadcast_to(np.reshape(colour, (3, 1, 1)), (3, 32, 32)) for colour in (pink, purple, blue)])
    assert (np.diff(first[:, 0]) > 0.1).all()


def test_windows_are_the_middle_and_hold_what_numpy_computes():
    patch = noise(1, 32)
    density = -np.log((patch[0] * 255 + 1) / 256)
    stains = np.stack([stain / np.linalg.norm(stain) for stain in (HAEMATOXYLIN, EOSIN, RESIDUAL)])
    amounts = np.einsum("cyx,cs->syx", density, np.linalg.inv(stains))
    channels = np.concatenate([amounts, density.mean(axis=0, keepdims=True)])
    features = describe(patch)[0].reshape(3, N_PER_WINDOW)
    for window, middle in zip(features, (slice(12, 20), slice(8, 24), slice(0, 32)), strict=True):
        values = channels[:, middle, middle].reshape(4, -1)
        np.testing.assert_allclose(window[MEAN], values.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(window[STD], values.std(axis=1, ddof=1), rtol=1e-4, atol=1e-5)
        quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9], axis=1).T.ravel()
        np.testing.assert_allclose(window[QUANTILES], quantiles, rtol=1e-4, atol=1e-5)


def test_what_lies_outside_a_window_does_not_change_its_densities():
    patch = noise(1, 64)
    other = patch.copy()
    other[..., :8, :] = 1
    features, others = (describe(p)[0].reshape(3, N_PER_WINDOW) for p in (patch, other))
    for window in (0, 1):
        np.testing.assert_array_equal(features[window][:28], others[window][:28])
    assert (features[2][MEAN] != others[2][MEAN]).all()


@pytest.mark.parametrize("side", [32, 128])
def test_orientation_of_the_section_does_not_matter(side):
    patch = noise(1, side)
    expected = describe(patch)
    for turned in (np.rot90(patch, axes=(2, 3)), patch[..., ::-1], patch[..., ::-1, :], patch.swapaxes(2, 3)):
        np.testing.assert_allclose(describe(turned.copy()), expected, rtol=1e-4, atol=1e-4)


def shuffled(patch):
    rng = np.random.default_rng(0)
    return patch.reshape(3, -1)[:, rng.permutation(patch.shape[1] * patch.shape[2])].reshape(patch.shape)


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch * 0.8,
        lambda patch: patch[::-1],
        lambda patch: 0.5 + (patch - 0.5) * 0.5,
        shuffled,
        lambda patch: np.roll(patch, 16, axis=1),
    ],
    ids=["darker", "blue for red", "less contrast", "pixels shuffled", "moved"],
)
def test_what_a_pathologist_sees_matters(change):
    y, x = np.mgrid[:64, :64]
    patch = stained(0.4 + 0.4 * (np.hypot(y - 30, x - 25) < 12), 0.5 + 0.2 * np.sin(x / 3), side=64)
    features, others = describe([patch, change(patch)])
    assert (np.abs(features - others) > 0.01).mean() > 0.2


@pytest.mark.parametrize(("period", "band"), [(2, 0), (4, 1), (8, 2), (16, 3)])
def test_bands_tell_the_size_of_detail(period, band):
    y, x = np.mgrid[:128, :128]
    board = (y // (period // 2) + x // (period // 2)) % 2
    details = describe([stained(0.2 + 0.6 * board, side=128)])[0][-12:].reshape(4, 3)[:, 0]
    assert details.argmax() == band


def test_descriptor_repeats_itself_and_treats_patches_one_by_one():
    patches = noise(5, 64)
    features = describe(patches)
    np.testing.assert_array_equal(describe(patches), features)
    np.testing.assert_allclose(np.concatenate([describe(patches[i : i + 1]) for i in range(5)]), features, atol=1e-5)
    assert not list(StainDescriptor().parameters())


def test_too_small_patches():
    with pytest.raises(ValueError, match=r"\(15, 15\).*n_pixels must be 16"):
        describe(noise(1, 15))
