"""Arguments: values of other kinds and out of range, in the calls of a trained model and of the functions beside it."""

import os

import numpy as np
import pandas as pd
from small_models import OPTIONS, TRAIN, fit, hide, tissue

from lgdist_scvi import LGDiST, pp, tl

from .judge import Harmful, Silent

BASE = {}
NUMBERS = [-1, 0, 1, 1.5, float("nan"), float("inf"), 10**12, 2**70, True, np.int64(2), np.float32(0.5), 1e-300]
NAMES = ["x", "", "a/b", "counts", "spatial", 3, None, b"x", ["counts"], ("a",), float("nan")]
LISTS = [
    [],
    [0],
    [-1],
    [0, 0],
    ["gene_1"],
    ["gene_1", "gene_1"],
    ["x"],
    "gene_1",
    3,
    [1.5],
    [True],
    {},
    [[0]],
    range(3),
    None,
]
LISTS += [
    np.zeros(3),
    np.ones(40, bool),
    np.arange(10**6),
    pd.Series([1, 2]),
    np.array(["gene_2"], dtype=object),
    {"gene_3"},
]
OTHER = [None, [], {}, "x", object, lambda: 0, 3.5, np.zeros((2, 2))]
READ = {
    "indices": LISTS,
    "gene_list": LISTS,
    "n_samples": [*NUMBERS, "x", [2]],
    "n_steps": [*NUMBERS, "x"],
    "seed": [*NUMBERS, "x", None],
    "batch_size": [*NUMBERS, "x", None],
    "scale": NAMES,
    "adata": OTHER,
    "other": OTHER,
}


def options(*names, **more):
    return {name: READ[name] for name in names} | more


FRACTIONS = [*NUMBERS, "x", None, [0.5]]
CALLS = {
    "get_completed_expression": (
        {"silent": True, "return_numpy": True},
        options(*READ, read_out=NAMES, keep_observed=OTHER, return_std=OTHER, use_image=OTHER),
    ),
    "get_count_quantiles": ({"silent": True}, options(*READ, quantiles=[*LISTS, *NUMBERS, [0.5, 2]], depth=FRACTIONS)),
    "sample_expression": ({"silent": True, "n_samples": 2}, options(*READ)),
    "get_region_expression": (
        {"silent": True, "n_spots": 9},
        options("gene_list", "seed", "batch_size", n_spots=NUMBERS, groupby=NAMES),
    ),
    "detect_expression": (
        {"silent": True, "n_spots": 9},
        options("gene_list", "seed", error=FRACTIONS, n_spots=NUMBERS, groupby=NAMES),
    ),
    "differential_expression": (
        {"silent": True, "groupby": "domain", "group1": "domain_1"},
        options("seed", "batch_size", groupby=NAMES, group1=NAMES, group2=NAMES, idx1=LISTS, idx2=LISTS),
    ),
    "get_gene_correlation": ({"silent": True, "n_samples": 4}, options(*READ, return_std=OTHER)),
    "evaluate_completion": ({"silent": True}, options("n_samples", "n_steps", "seed", "adata", fraction=FRACTIONS)),
    "get_held_out_entries": ({"silent": True}, options("n_samples", "seed", fraction=FRACTIONS)),
    "get_latent_representation": ({}, options("indices", "batch_size", "adata", kind=NAMES, aligned=OTHER)),
    "predict_expression": ({"silent": True, "adata": "new"}, options("gene_list", "n_samples", "scale", "adata")),
    "add_completed_layer": ({"silent": True, "adata": "new"}, options("seed", "scale", "batch_size", key_added=NAMES)),
    "write_completed": (
        {"silent": True, "path": "out.h5ad"},
        options(
            "seed",
            "scale",
            "batch_size",
            key_added=NAMES,
            path=["", "out", "out.txt", 3, None, "none/out.h5ad", "mine.h5ad"],
        ),
    ),
    "save": (
        {"dir_path": "saved"},
        {"dir_path": ["", 3, None, "mine.h5ad", "none/model", "\0"], "prefix": [3, "a/b", "x"]},
    ),
    "train": (
        TRAIN | {"max_epochs": 1},
        {
            "max_epochs": [*NUMBERS[:7], "x", [1]],
            "batch_size": [*NUMBERS, "x", None],
            "validation_size": FRACTIONS,
            "accelerator": NAMES,
            "devices": ["x", [], [0, 1], -1, 0, None, 1.5, {}, 10**6],
            "strategy": ["x", 3],
            "precision": [64, "x", "16-true", 3, "bf16-mixed"],
            "callbacks": [3, "x", [3], [None]],
            "logger": ["x", 3],
            "gradient_clip_val": ["x", float("nan"), -1],
            "early_stopping_patience": [-1, "x", 1.5],
            "early_stopping": [None, "x"],
            "check_val_every_n_epoch": [0, -1, "x", 1.5],
            "autoencoder_plan_kwargs": OTHER,
            "limit_train_batches": [0, -1, "x", 2.5],
            "num_nodes": [0, -1, "x"],
            "other": OTHER,
        },
    ),
    "LGDiST": (
        {},
        {
            name: [*NUMBERS[:9], "x", None]
            for name in (
                "n_latent",
                "n_hidden",
                "n_layers",
                "n_heads",
                "n_factors",
                "dropout",
                "seed",
                "n_rounds",
                "n_diffusion_steps",
            )
        }
        | {"loss": NAMES, "condition": NAMES, "sampler": NAMES, "encoder": NAMES, "other": OTHER},
    ),
    "setup_anndata": (
        {"layer": "counts"},
        dict.fromkeys(
            ("layer", "spatial_key", "library_key", "batch_key", "image_key", "observed_layer", "size_factor_key"),
            NAMES,
        )
        | {
            "target_genes_key": NAMES,
            "neighbors_key": NAMES,
            "n_neighbors": NUMBERS,
            "max_distance": FRACTIONS,
            "other": OTHER,
        },
    ),
    "select_genes": (
        {"layer": "counts", "n_target": 5, "n_context": 5},
        {
            "n_target": [*NUMBERS, "x"],
            "n_context": [*NUMBERS, "x"],
            "keep": LISTS,
            "min_fraction": FRACTIONS,
            "target_sum": FRACTIONS,
            "n_neighbors": NUMBERS,
            "layer": NAMES,
            "library_key": NAMES,
            "gene_symbols": NAMES,
        },
    ),
    "prepare_audit": (
        {"layer": "counts", "n_decoys": 3},
        {"fraction": FRACTIONS, "n_decoys": [*NUMBERS, "x"], "seed": NUMBERS, "layer": NAMES, "spatial_key": NAMES},
    ),
    "domains": (
        {"n_domains": 3, "use_rep": "X_lgdist", "n_seeds": 2},
        {
            "n_domains": [*NUMBERS, "x"],
            "resolution": FRACTIONS,
            "use_rep": NAMES,
            "key_added": NAMES,
            "n_seeds": [*NUMBERS[:6], "x"],
            "seed": NUMBERS,
            "vote_spots": [*NUMBERS, "x"],
            "library_key": NAMES,
        },
    ),
}
FUNCTIONS = {"select_genes": pp.select_genes, "prepare_audit": tl.prepare_audit, "domains": tl.domains}


def prepare(folder):
    adata = hide(tissue(n_spots=100, n_genes=20))
    LGDiST.setup_anndata(adata, "counts", image_key="X_image", observed_layer="observed")
    BASE["model"] = model = fit(LGDiST(adata, **OPTIONS), max_epochs=1)
    BASE["expected"] = model.get_completed_expression(silent=True, return_numpy=True)
    adata.obsm["X_lgdist"] = model.get_latent_representation()


def tables(found):
    """Arrays of numbers in what a call returns."""
    if isinstance(found, tuple | list):
        return [array for one in found for array in tables(one)]
    if hasattr(found, "layers"):
        return [array for array in (found.X, *found.layers.values()) if isinstance(array, np.ndarray)]
    if isinstance(found, pd.DataFrame):
        return [found.select_dtypes("number").to_numpy()]
    return [found] if isinstance(found, np.ndarray) and found.dtype.kind == "f" else []


def state(adata):
    dense = {
        name: np.asarray(getattr(value, "todense", lambda value=value: value)()) for name, value in adata.layers.items()
    }
    return {**{name: value.tobytes() for name, value in dense.items()}, "at": adata.obsm["spatial"].tobytes()}


def draw(rng, folder):
    name = str(rng.choice(list(CALLS)))
    given, odd = CALLS[name]
    given, model = dict(given), BASE["model"]
    chosen = rng.choice(list(odd), min(len(odd), int(rng.integers(1, 3))), replace=False)
    for key in chosen:
        given[str(key)] = odd[key][rng.integers(len(odd[key]))]
    adata = model.adata.copy()
    (folder / "mine.h5ad").write_text("mine")
    for key in ("path", "dir_path"):
        if isinstance(given.get(key), str) and given[key]:
            given[key] = f"{folder}/{given[key]}"
    given = {key: adata if isinstance(value, str) and value == "new" else value for key, value in given.items()}

    def use():
        os.chdir(folder)
        mine, before = state(model.adata), state(adata)
        try:
            if name in FUNCTIONS:
                found = FUNCTIONS[name](adata, **given)
            elif name == "LGDiST":
                found = LGDiST(model.adata, **{**OPTIONS, **given})
            elif name == "setup_anndata":
                found = LGDiST.setup_anndata(adata, **given)
            else:
                found = getattr(model, name)(**given)
        finally:
            if state(model.adata) != mine or any(state(adata).get(key) != value for key, value in before.items()):
                raise Harmful("the data changed")
            if (folder / "mine.h5ad").read_text() != "mine":
                raise Harmful("a file of the user changed")
            if name != "train":
                again = model.get_completed_expression(silent=True, return_numpy=True)
                if (again != BASE["expected"]).any():
                    raise Harmful("the model changed")
        again = model.get_completed_expression(silent=True, return_numpy=True)
        for array in (again, *tables(found)):
            # Where nothing was asked for, or nothing is known, there may be NaN in tables of scores.
            if np.isinf(np.asarray(array, dtype=float)).any() or (name in NO_NAN and np.isnan(array).any()):
                raise Silent("values that are not finite")

    return [f"{name}({', '.join(f'{key}={_short(given[str(key)])}' for key in chosen)})"], use


def _short(value):
    return " ".join(repr(value).split())[:40]


NO_NAN = (
    "get_completed_expression",
    "get_count_quantiles",
    "sample_expression",
    "get_latent_representation",
    "predict_expression",
)
