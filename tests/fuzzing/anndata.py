"""AnnData: entries, rows and columns, types, forms, keys and whole fields that went wrong."""

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from small_models import OPTIONS, fit

from lgdist_scvi import LGDiST

from .judge import Harmful, Silent

N_SPOTS, N_GENES = 40, 12
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


def used(adata, setup, n_neighbors):
    """Set up, train and read; refused by an error, or finite. The data stay as they are in any case."""
    before = adata.copy()
    try:
        LGDiST.setup_anndata(adata, **setup, n_neighbors=n_neighbors)
        model = fit(LGDiST(adata, **OPTIONS), max_epochs=1)
        completed, std = model.get_completed_expression(return_std=True, **READ)
        if completed.shape != (N_SPOTS, N_GENES):
            raise Silent("the shape is another")
        for values in (completed, std, model.get_completed_expression(read_out="detected", **READ)):
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise Silent("values that are no expression")
        if not np.isfinite(model.get_latent_representation()).all():
            raise Silent("codes that are not finite")
    finally:
        for place in PLACES:
            part, _, name = place.partition(" ")
            if (part == "X" or name in getattr(before, part)) and not same(get(adata, place), get(before, place)):
                raise Harmful(f"{place} changed")


def change(adata, rng, changes):
    for name, place, number in changes:
        try:
            CHANGES[name](adata, rng, place, number)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            pass  # there is no such data


def prepare(folder):
    pass


def draw(rng, folder):
    adata = tissue(rng)
    changes = [
        (str(rng.choice(sorted(CHANGES))), str(rng.choice(PLACES)), float(rng.choice(ODD_NUMBERS)))
        for _ in range(rng.integers(1, 4))
    ]
    setup = {name: value for name, value in SETUP.items() if rng.random() < 0.5}
    change(adata, rng, changes)
    return [name for name, _, _ in changes], lambda: used(adata, setup, int(rng.choice([1, 6, 19, 20, 39])))
