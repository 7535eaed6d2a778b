"""Data that went wrong at random: refused by a check of ours, or completed; never anything in between.

The inputs are the same in every run. ``LGDIST_FUZZ=2000 pytest tests/model/test_fuzz.py`` tries as many others, new ones
each time, and `make test-all` a few hundred; what they find becomes an ``@example``.
"""

import os
import traceback
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import sparse

import lgdist_scvi
from lgdist_scvi import LGDiST

N_SPOTS, N_GENES = 40, 12
PACKAGE = str(Path(lgdist_scvi.__file__).parent)
READ = {"n_samples": 1, "n_steps": 1, "silent": True, "return_numpy": True}
SETUP = {
    "layer": "counts",
    "library_key": "library",
    "batch_key": "batch",
    "image_key": "image",
    "observed_layer": "observed",
    "size_factor_key": "depth",
    "target_genes_key": "target",
}


def tissue(rng):
    counts = rng.negative_binomial(1, 0.3, (N_SPOTS, N_GENES)) + (
        np.arange(N_GENES) == np.arange(N_SPOTS)[:, None] % N_GENES
    )
    counts = counts.astype(np.float32)
    return ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {
                "library": np.repeat(["a", "b"], N_SPOTS // 2),
                "batch": pd.Categorical(np.tile(["u", "v"], N_SPOTS // 2)),
                "depth": 3.0 * counts.sum(axis=1),
            },
            index=[f"s{i}" for i in range(N_SPOTS)],
        ),
        var=pd.DataFrame({"target": np.arange(N_GENES) < 4}, index=[f"g{i}" for i in range(N_GENES)]),
        obsm={
            "spatial": np.stack(np.divmod(np.arange(N_SPOTS), 6), axis=1).astype(float),
            "image": rng.normal(size=(N_SPOTS, 3)),
        },
        layers={"counts": counts, "observed": rng.random(counts.shape) < 0.8},
    )


ODD_NUMBERS = [np.nan, np.inf, -np.inf, -1.0, 0.5, 0.0, 1e9, 1e30, 5e-324, 16777217.0]
PLACES = [
    "X",
    "layers counts",
    "layers observed",
    "obsm spatial",
    "obsm image",
    "obs depth",
    "var target",
    "obs library",
]


def get(adata, place):
    part, _, name = place.partition(" ")
    return adata.X if part == "X" else getattr(adata, part)[name]


def put(adata, place, value):
    part, _, name = place.partition(" ")
    if part == "X":
        adata.X = value
    else:
        getattr(adata, part)[name] = value


def dense(value):
    return value.toarray() if sparse.issparse(value) else np.array(value)


def open_to_numbers(adata, place):
    return dense(get(adata, place)).astype(object if place.startswith("obs lib") else float)


def odd_entries(adata, rng, place, number):
    array = open_to_numbers(adata, place)
    flat = array.reshape(-1)
    flat[rng.choice(flat.size, rng.integers(1, 4), replace=False)] = number
    put(adata, place, array)


def odd_line(adata, rng, place, number):
    """A whole spot, or a whole column."""
    array = open_to_numbers(adata, place)
    if array.ndim == 2 and rng.random() < 0.5:
        array[:, rng.integers(array.shape[1])] = number
    else:
        array[rng.integers(len(array))] = number
    put(adata, place, array)


def other_type(adata, rng, place, number):
    kind = rng.choice(["float16", "float64", "int8", "uint64", "bool", "complex64", "object", "str", "longdouble"])
    put(adata, place, dense(get(adata, place)).astype(str(kind)))


def other_form(adata, rng, place, number):
    forms = [sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array, sparse.lil_matrix, np.asfortranarray, pd.DataFrame]
    form = forms[rng.integers(len(forms))]
    array = dense(get(adata, place))
    options = {"index": adata.obs_names} if form is pd.DataFrame and not place.startswith("var") else {}
    if array.ndim == 2:
        put(adata, place, form(array.astype(array.dtype if array.dtype != object else float), **options))


def removed(adata, rng, place, number):
    part, _, name = place.partition(" ")
    if part == "X":
        adata.X = None
    else:
        del getattr(adata, part)[name]


def permuted(adata, rng, place, number):
    value = dense(get(adata, place))
    put(adata, place, value[rng.permutation(len(value))])


def constant(adata, rng, place, number):
    put(adata, place, np.full_like(dense(get(adata, place)), 1))


def emptied(adata, rng, place, number):
    array = open_to_numbers(adata, place)
    put(adata, place, np.full_like(array, number))


CHANGES = {
    change.__name__: change
    for change in (odd_entries, odd_line, other_type, other_form, removed, permuted, constant, emptied)
}


def same(one, other):
    if one is None or other is None:
        return one is other
    return type(one) is type(other) and np.array_equal(dense(one).astype(str), dense(other).astype(str))


@settings(
    max_examples=int(os.environ.get("LGDIST_FUZZ") or 30),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(PLACES), st.sampled_from(ODD_NUMBERS)),
        min_size=1,
        max_size=3,
    ),
    used=st.sets(st.sampled_from(sorted(SETUP))),
    n_neighbors=st.sampled_from([1, 6, 19, 20, 39]),
)
# Names of sections that cannot be sorted, one of them infinite.
@example(seed=23, changes=[("odd_entries", "obs library", np.inf)], used={"library_key", "batch_key"}, n_neighbors=1)
# Fingerprints of spots beyond 63 bits.
@example(seed=0, changes=[("emptied", "X", 1e9)], used=set(), n_neighbors=1)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_refused_or_completed(small, seed, changes, used, n_neighbors):
    rng = np.random.default_rng(seed)
    adata = tissue(rng)
    for name, place, number in changes:
        try:
            CHANGES[name](adata, rng, place, number)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            pass  # there is no such data
    before = adata.copy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LGDiST.setup_anndata(adata, **{name: SETUP[name] for name in used}, n_neighbors=n_neighbors)
    except (TypeError, ValueError, KeyError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        assert last.filename.startswith(PACKAGE), "refused, but not by a check"
        assert len(str(error)) > 30
    else:
        model = small.fit(LGDiST(adata, **small.OPTIONS), max_epochs=1)
        completed, std = model.get_completed_expression(return_std=True, **READ)
        assert completed.shape == (N_SPOTS, N_GENES)
        for values in (completed, std, model.get_completed_expression(read_out="detected", **READ)):
            assert np.isfinite(values).all() and (values >= 0).all()
        assert np.isfinite(model.get_latent_representation()).all()
    for place in PLACES:
        part, _, name = place.partition(" ")
        if part == "X" or name in getattr(before, part):
            assert same(get(adata, place), get(before, place)), place
