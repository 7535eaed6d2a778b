"""What must hold for whatever data: the form of the data does not matter, and extremes give finite values."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from lgdist_scvi import LGDiST

READ = {"n_samples": 2, "n_steps": 2, "silent": True, "return_numpy": True}
FORMS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "dense": lambda counts: counts,
    "fortran": np.asfortranarray,
}


@pytest.fixture(scope="module")
def model(small):
    adata = small.hide(small.tissue(n_libraries=2))
    return small.fit(small.build(adata, library_key="library_id", observed_layer="observed"))


@pytest.fixture(scope="module")
def reference(model):
    return model.get_completed_expression(**READ)


def shuffled(matrix, rng):
    """The same sparse matrix with the entries of each row, or column, in another order."""
    matrix = matrix.copy()
    for start, stop in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        order = start + rng.permutation(stop - start)
        matrix.indices[start:stop], matrix.data[start:stop] = matrix.indices[order], matrix.data[order]
    matrix.has_sorted_indices = False
    return matrix


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(["float32", "float64", "int16", "int32", "int64", "uint16"]),
    observed=st.sampled_from(sorted(FORMS)),
    labels=st.sampled_from(["category", "str", "object"]),
    entries=st.booleans(),
    batch_size=st.sampled_from([1, 7, 64, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_form_order_and_batches_do_not_matter(
    model, reference, form, dtype, observed, labels, entries, batch_size, seed
):
    rng = np.random.default_rng(seed)
    order = rng.permutation(model.adata.n_obs)
    source = model.adata[order]
    counts = FORMS[form](source.layers["counts"].toarray().astype(dtype))
    if entries and sparse.issparse(counts):
        counts = shuffled(counts, rng)
    adata = ad.AnnData(
        sparse.csr_matrix(source.shape, dtype=np.float32),
        obs=pd.DataFrame({"library_id": source.obs["library_id"].astype(labels)}, index=source.obs_names),
        var=source.var[[]],
        obsm={"spatial": np.array(source.obsm["spatial"])},
        layers={"counts": counts, "observed": FORMS[observed](np.array(source.layers["observed"]))},
    )
    before = adata.copy()
    rows = rng.permutation(len(order))[: 10 if batch_size == 1 else None]  # minibatches of one spot take long
    options = READ | {"batch_size": batch_size, "indices": rows}
    completed = model.get_completed_expression(adata, **options)
    np.testing.assert_allclose(completed, reference[order[rows]], rtol=1e-4, atol=1e-5)
    for name, layer in before.layers.items():
        assert type(adata.layers[name]) is type(layer) and adata.layers[name].dtype == layer.dtype
        assert (adata.layers[name] != layer).sum() == 0


def test_unrelated_sections_do_not_matter(model, reference):
    first = np.flatnonzero(model.adata.obs["library_id"] == model.adata.obs["library_id"].iloc[0])
    other = model.adata[np.setdiff1d(np.arange(model.adata.n_obs), first)].copy()
    other.layers["counts"] = (other.layers["counts"] * 7).tocsr()
    other.obsm["spatial"] = other.obsm["spatial"] * 31
    for beside in ([], [other]):
        adata = ad.concat([model.adata[first].copy(), *beside])
        completed = model.get_completed_expression(adata, **READ)
        np.testing.assert_allclose(completed[: len(first)], reference[first], rtol=1e-4, atol=1e-5)


def counts_of(rng, n_spots=60, n_genes=20, mean=2.0):
    return rng.negative_binomial(1, 1 / (1 + mean), (n_spots, n_genes)) + (
        np.arange(n_genes) == np.arange(n_spots)[:, None] % n_genes
    )


def tissue(counts, positions=None, **layers):
    n_spots = len(counts)
    positions = np.stack(np.divmod(np.arange(n_spots), 8), axis=1) if positions is None else positions
    adata = ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float64)), obsm={"spatial": np.asarray(positions, dtype=float)}
    )
    adata.obs_names, adata.var_names = [f"s{i}" for i in range(n_spots)], [f"g{i}" for i in range(counts.shape[1])]
    adata.layers.update(layers)
    return adata


def one_count_spots(rng):
    counts = np.zeros((60, 20), dtype=int)
    counts[np.arange(60), np.arange(60) % 20] = 1
    return tissue(counts), {}


def one_count_genes(rng):
    counts = counts_of(rng)
    counts[:, :5] = 0
    counts[np.arange(5), np.arange(5)] = 1
    return tissue(counts), {}


def without_counts(rng):
    counts = counts_of(rng)
    counts[::3], counts[:, :5] = 0, 0
    return tissue(counts), {}


def extreme_depths(rng):
    counts = counts_of(rng)
    counts[0] = np.arange(20) == 3
    counts[1] = rng.multinomial(1_000_000, np.full(20, 0.05))
    return tissue(counts), {}


def huge_counts(rng):
    counts = counts_of(rng)
    counts[5, 7] = 1_000_000
    return tissue(counts), {}


def collinear(rng):
    counts = counts_of(rng)
    return tissue(counts, np.stack([np.arange(60), np.zeros(60)], axis=1)), {}


def isolated(rng):
    positions = np.stack(np.divmod(np.arange(60), 8), axis=1).astype(float)
    positions[:4] += 1e6 * np.arange(1, 5)[:, None]
    return tissue(counts_of(rng), positions), {}


def a_thousand_libraries(rng):
    adata = tissue(counts_of(rng, n_spots=2200))  # more than statistics and held-out entries are taken of
    adata.obs["library"] = [f"l{i // 2}" for i in range(2200)]
    return adata, {"library_key": "library", "n_neighbors": 1}


def nothing_observed_of_some(rng):
    observed = rng.random((60, 20)) < 0.5
    observed[:10], observed[:, 3] = False, False
    return tissue(counts_of(rng), observed=observed), {"observed_layer": "observed"}


def hardly_anything_observed(rng):
    observed = np.zeros((60, 20), dtype=bool)
    observed[0] = True
    return tissue(counts_of(rng) + 1, observed=observed), {"observed_layer": "observed"}


def equal_spots(rng):
    return tissue(np.tile(1 + counts_of(rng)[:1], (60, 1))), {}


def two_genes(rng):
    return tissue(counts_of(rng, n_genes=2)), {}


EXTREMES = [
    one_count_spots,
    one_count_genes,
    without_counts,
    extreme_depths,
    huge_counts,
    collinear,
    isolated,
    a_thousand_libraries,
    nothing_observed_of_some,
    hardly_anything_observed,
    equal_spots,
    two_genes,
]


@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda extreme: extreme.__name__)
def test_extremes_are_finite(small, extreme):
    adata, setup = extreme(np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few spots, or some without counts
        LGDiST.setup_anndata(adata, **setup)
        model = small.fit(LGDiST(adata, **small.OPTIONS), max_epochs=3)
    for options in ({}, {"scale": "counts"}, {"read_out": "detected"}):
        completed = model.get_completed_expression(**(READ | options))
        assert completed.shape == adata.shape and completed.dtype == np.float32
        assert np.isfinite(completed).all() and (completed >= 0).all(), options
    mean, std = model.get_completed_expression(return_std=True, **READ)
    assert np.isfinite(std).all() and (std >= 0).all()
    again = model.get_completed_expression(return_std=True, **READ)
    assert np.array_equal(again[0], mean) and np.array_equal(again[1], std)
    assert np.isfinite(model.get_latent_representation()).all()
    for metrics in model.history.values():
        for table in metrics.values():
            assert np.isfinite(table.to_numpy()).all()


def test_sections_of_one_spot_are_completed(model, reference):
    """Too little to train with, but enough to be read out."""
    adata = model.adata[:5].copy()
    adata.obs["library_id"] = [f"alone {i}" for i in range(5)]
    completed = model.get_completed_expression(adata, **READ)
    assert np.isfinite(completed).all() and np.abs(completed - reference[:5]).max() > 1e-3
