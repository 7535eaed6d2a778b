"""Folders of models: files that are damaged, missing, exchanged, or changed in one place."""

import hashlib
import shutil

import anndata
import numpy as np
import torch
from small_models import OPTIONS, READ, fit, tissue

from lgdist_scvi import LGDiST

from .judge import Harmful, Silent

FILES = ("model.pt", "adata.h5ad")
EXPECTED = {}


def prepare(folder):
    for name, seed in (("model", 0), ("other", 1)):
        adata = tissue(n_spots=60, n_genes=15, seed=seed, n_libraries=2)
        adata.obs["note"] = "a"
        LGDiST.setup_anndata(adata, "counts", library_key="library_id", image_key="X_image")
        model = fit(LGDiST(adata, **OPTIONS), max_epochs=1)
        model.save(folder / name, save_anndata=True)
        EXPECTED[name] = model.get_completed_expression(return_numpy=True, **READ)
    EXPECTED["folder"], EXPECTED["adata"] = folder, anndata.read_h5ad(folder / "model" / "adata.h5ad")


def flipped(content, rng):
    content = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 20)):
        content[place] ^= 1 << int(rng.integers(8))
    return bytes(content)


def zeroed(content, rng):
    start = int(rng.integers(0, len(content)))
    return content[:start] + bytes(min(256, len(content) - start)) + content[start + 256 :]


BYTES = {
    "bits": flipped,
    "zeros": zeroed,
    "cut": lambda content, rng: content[: rng.integers(len(content))],
    "twice": lambda content, rng: content + content,
    "noise": lambda content, rng: rng.bytes(len(content)),
    "empty": lambda content, rng: b"",
    "text": lambda content, rng: b"a model",
}


def leaves(value, path=()):
    """Every place in nested dictionaries and lists."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from leaves(item)


ODD = [None, -1, 0, 1.5, float("nan"), "x", [], {}, True, 10**12, "counts", ["a", 1]]


def leaf(content, rng):
    """Another value in one place."""
    place, key = (found := list(leaves(content)))[rng.integers(len(found))]
    if isinstance(place[key], torch.Tensor):
        tensor = place[key]
        options = [tensor + 1, tensor.double(), tensor[None], tensor * float("nan"), torch.zeros_like(tensor), None]
        place[key] = options[rng.integers(len(options))]
    elif isinstance(place[key], np.ndarray):
        place[key] = rng.permutation(place[key]) if rng.random() < 0.5 else place[key][:-1]
    else:
        place[key] = ODD[rng.integers(len(ODD))]


def removed(content, rng):
    place, key = (found := [one for one in leaves(content) if isinstance(one[0], dict)])[rng.integers(len(found))]
    del place[key]


def added(content, rng):
    place, _ = (found := [one for one in leaves(content) if isinstance(one[0], dict)])[rng.integers(len(found))]
    place["extra"] = ODD[rng.integers(len(ODD))]


def renamed(content, rng):
    place, key = (found := [one for one in leaves(content) if isinstance(one[0], dict)])[rng.integers(len(found))]
    place[f"{key}x"] = place.pop(key)


def in_model(change):
    def damage(folder, rng):
        content = torch.load(folder / "model.pt", weights_only=False)
        change(content, rng)
        torch.save(content, folder / "model.pt")

    return damage


def in_data(change):
    def damage(folder, rng):
        adata = anndata.read_h5ad(folder / "adata.h5ad")
        adata = change(adata, rng) or adata
        adata.write_h5ad(folder / "adata.h5ad")

    return damage


def a_count(adata, rng):
    counts = adata.layers["counts"].toarray()
    counts[tuple(rng.integers(counts.shape))] += rng.choice([1, 0.5, -99, np.nan])
    adata.layers["counts"] = counts


def a_position(adata, rng):
    adata.obsm["spatial"][rng.integers(adata.n_obs), 0] += rng.choice([1, np.nan])


def an_image(adata, rng):
    adata.obsm["X_image"][rng.integers(adata.n_obs), 0] += 1


def a_library(adata, rng):
    adata.obs["library_id"] = rng.permutation(adata.obs["library_id"].to_numpy())


def names(axis):
    def change(adata, rng):
        setattr(adata, f"{axis}_names", rng.permutation(getattr(adata, f"{axis}_names")))

    return change


def a_note(adata, rng):
    adata.obs["note"] = "b"
    adata.uns["note"] = "c"


def bytes_of(name, change):
    def damage(folder, rng):
        (folder / name).write_bytes(change((folder / name).read_bytes(), rng))

    return damage


def exchanged(name):
    return lambda folder, rng: shutil.copy(EXPECTED["folder"] / "other" / name, folder / name)


def a_folder(name):
    def damage(folder, rng):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def nothing(folder, rng):
    pass


DAMAGE = {
    "nothing": nothing,
    **{f"{name} {kind}": bytes_of(name, change) for name in FILES for kind, change in BYTES.items()},
    **{f"{name} missing": (lambda folder, rng, name=name: (folder / name).unlink()) for name in FILES},
    **{f"{name} of another model": exchanged(name) for name in FILES},
    **{f"{name} is a folder": a_folder(name) for name in FILES},
    **{f"a value {change.__name__}": in_model(change) for change in (leaf, removed, added, renamed)},
    "a count": in_data(a_count),
    "a position": in_data(a_position),
    "an image": in_data(an_image),
    "libraries": in_data(a_library),
    "names of spots": in_data(names("obs")),
    "names of genes": in_data(names("var")),
    "fewer spots": in_data(lambda adata, rng: adata[3:].copy()),
    "other order": in_data(lambda adata, rng: adata[::-1].copy()),
    "fewer genes": in_data(lambda adata, rng: adata[:, 1:].copy()),
    "a note": in_data(a_note),
}


def hash_of(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.iterdir())
    }


def draw(rng, folder):
    kind = str(rng.choice(list(DAMAGE)))
    model = folder / "model"
    shutil.copytree(EXPECTED["folder"] / "model", model)
    DAMAGE[kind](model, rng)
    # Half of the models are given data that are as they were.
    given = bool(rng.random() < 0.3)

    def use():
        before = hash_of(model)
        try:
            loaded = LGDiST.load(model, adata=EXPECTED["adata"].copy() if given else None)
            found = loaded.get_completed_expression(return_numpy=True, **READ)
        finally:
            if hash_of(model) != before:
                raise Harmful("files of the model changed")
        if given and kind == "model.pt of another model":
            return  # it is whole
        if found.shape != EXPECTED["model"].shape or (found != EXPECTED["model"]).any():
            raise Silent("another completion")

    return [kind + (" (data given)" if given else "")], use
