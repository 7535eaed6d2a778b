"""Groups of spots and patches of neighbours."""

import numpy as np
import pytest
from anndata import AnnData

from lgdist_scvi.data._areas import disjoint_patches, groups_of, patches_around


def grid(n=6):
    return np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2).astype(float)


def test_groups():
    adata = AnnData(np.zeros((5, 1), dtype=np.float32))
    adata.obs["region"] = ["b", None, "a", "b", "a"]
    names, members = groups_of(adata, "region")
    assert list(names) == ["a", "b"] and names.name == "region"
    np.testing.assert_array_equal(members.toarray(), [[0, 0, 1, 0, 1], [1, 0, 0, 1, 0]])
    with pytest.raises(KeyError, match="no column 'layer' .found: 'region'.; correct groupby"):
        groups_of(adata, "layer")
    adata.obs["empty"] = None
    with pytest.raises(ValueError, match="names no group"):
        groups_of(adata, "empty")


def test_patches_hold_the_nearest_spots_of_the_section():
    positions = np.concatenate([grid(), grid() + 0.01])
    section = np.repeat([0, 1], 36)
    patches = patches_around(positions, section, 5)
    assert (patches.getnnz(axis=1) == 5).all()
    for spot in (14, 50):  # inside: itself and the four beside it
        distance = np.square(positions - positions[spot]).sum(axis=1) + 100 * (section != section[spot])
        assert set(patches[spot].indices) == set(np.argsort(distance, kind="stable")[:5])
    assert (patches_around(positions, section, 100).getnnz(axis=1) == 36).all()


def test_disjoint_patches_share_no_spot():
    patches = disjoint_patches(grid(12), np.zeros(144, dtype=np.intp), 9, np.random.default_rng(0))
    assert patches.shape[0] > 5 and (patches.getnnz(axis=1) == 9).all()
    assert np.asarray(patches.sum(axis=0)).max() == 1
    assert not disjoint_patches(grid(2), np.zeros(4, dtype=np.intp), 9, np.random.default_rng(0)).shape[0]
