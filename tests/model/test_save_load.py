"""A saved model reads the same data alike, and data with other genes not at all."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from copy import deepcopy
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scvi.model.base import BaseModelClass

from lgdist_scvi import LGDiST
from lgdist_scvi._exclusive import sole_writer

SETUP = {"library_key": "library_id", "image_key": "X_image", "observed_layer": "observed", "batch_key": "domain"}


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    """A trained model, what it completes, and where it is saved with its data."""
    adata = small.hide(small.tissue(n_libraries=2))
    model = small.fit(small.build(adata, {"seed": 3}, **SETUP))
    folder = tmp_path_factory.mktemp("model")
    model.save(folder, overwrite=True, save_anndata=True)
    return model, read(model, small), folder


def read(model, small, adata=None, **options):
    return model.get_completed_expression(adata, **(small.READ | options))


def new_section(small, **options):
    adata = small.hide(small.tissue(n_spots=70, seed=9, **options))
    adata.obs["library_id"] = pd.Categorical(["another section"] * 70)
    return adata


def test_same_output(saved, small):
    model, completed, folder = saved
    torch.manual_seed(77)
    again = LGDiST.load(folder, adata=ad.read_h5ad(folder / "adata.h5ad"))
    pd.testing.assert_frame_equal(read(again, small), completed)
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    pd.testing.assert_frame_equal(again.evaluate_completion(**small.READ), model.evaluate_completion(**small.READ))
    for phase, metrics in model.history.items():
        for name, table in metrics.items():
            pd.testing.assert_frame_equal(again.history[phase][name], table)
    assert not again.module.training
    state = again.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())


def test_data_saved_with_the_model(saved, small):
    _, completed, folder = saved
    loaded = LGDiST.load(folder)
    pd.testing.assert_frame_equal(read(loaded, small), completed)
    section = new_section(small)
    assert read(loaded, small, section).index.equals(section.obs_names)


def test_without_any_data(saved, small, tmp_path):
    model, _, _ = saved
    model.save(tmp_path / "model", save_anndata=False)
    with pytest.raises(ValueError, match="adata"):
        LGDiST.load(tmp_path / "model")


def test_the_file_holds_no_data(small, tmp_path):
    """A model of many spots is larger than one of few by the numbers of the spots alone."""
    sizes = []
    for n_spots in (60, 1200):
        adata = small.tissue(n_spots=n_spots)
        model = small.fit(small.build(adata), max_epochs=1, batch_size=600)
        model.save(tmp_path / str(n_spots))
        sizes.append((tmp_path / str(n_spots) / "model.pt").stat().st_size)
    assert sizes[1] < sizes[0] + 25 * (1200 - 60)


def test_new_section(saved, small):
    model, _, folder = saved
    before = read(model, small, new_section(small))
    # The section is the data to load with, or handed to the loaded model.
    loaded = LGDiST.load(folder, adata=new_section(small))
    pd.testing.assert_frame_equal(read(loaded, small), before)
    pd.testing.assert_frame_equal(read(LGDiST.load(folder), small, new_section(small)), before)
    assert loaded.adata.obs["library_id"].unique().tolist() == ["another section"]


def test_new_section_need_not_say_which_genes_are_targets(small, tmp_path):
    adata = small.tissue()
    adata.var["target_gene"] = np.arange(40) < 10
    model = small.build(adata, target_genes_key="target_gene")
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=small.tissue(seed=9))
    weight = loaded.module.gene_weight
    assert torch.equal(weight, model.module.gene_weight) and weight[0] > weight[-1]


def test_training_goes_on_after_loading(saved, small):
    _, _, folder = saved
    loaded = LGDiST.load(folder)
    before = loaded.module.encoder.code.weight.clone()
    small.fit(loaded)
    assert not torch.equal(before, loaded.module.encoder.code.weight)
    assert loaded.history["diffusion"]["train_loss"].index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda a: a[:, ::-1].copy(), ["another order", "'gene_40'", "'gene_1'"]),
        (lambda a: a[:, [0, 1, *range(4, 40)]].copy(), ["lacks 2 of the model's 40 genes", "'gene_3', 'gene_4'"]),
        (lambda a: ad.concat([a, new_names(a[:, :3])], axis=1, merge="first"), ["3 genes", "'EXTRA_gene_1'"]),
    ],
    ids=["reordered", "missing", "extra"],
)
@pytest.mark.filterwarnings("ignore:`var_names` for the loaded:UserWarning", "ignore:.*Observation names.*:UserWarning")
def test_other_genes(saved, small, change, parts):
    model, _, folder = saved
    adata = change(new_section(small))
    for attempt in (
        lambda: LGDiST.load(folder, adata=adata),
        lambda: model.get_completed_expression(adata),
        lambda: model.get_latent_representation(adata),
        lambda: model.evaluate_completion(adata),
        lambda: model.add_completed_layer(adata),
    ):
        with pytest.raises(ValueError, match="adata") as caught:
            attempt()
        assert all(part in str(caught.value) for part in parts), caught.value


def new_names(adata):
    adata = adata.copy()
    adata.var_names = "EXTRA_" + adata.var_names
    return adata


def test_subset(saved, small):
    model, _, _ = saved
    first = (model.adata.obs["library_id"] == "section_1").to_numpy()
    subset = model.adata[first].copy()
    completed = read(model, small, subset)
    assert completed.index.equals(model.adata.obs_names[first])
    # Any subset keeps the edges among its spots.
    some = np.random.default_rng(0).permutation(model.adata.n_obs)[:90]
    subset = model.adata[some].copy()
    assert np.isfinite(read(model, small, subset).to_numpy()).all()
    expected = model.adata.obsp["lgdist_connectivities"][some][:, some]
    assert (subset.obsp["lgdist_connectivities"] != expected).nnz == 0


@pytest.mark.slow
def test_another_process(saved, small, tmp_path):
    _, completed, folder = saved
    script = (
        "import sys, torch, scvi\n"
        "scvi.settings.seed = 123\n"
        "torch.set_num_threads(1)\n"
        "from lgdist_scvi import LGDiST\n"
        "model = LGDiST.load(sys.argv[1])\n"
        "model.get_completed_expression(n_samples=2, n_steps=2, silent=True).to_pickle(sys.argv[2])\n"
    )
    out = tmp_path / "completed.pkl"
    subprocess.run([sys.executable, "-c", script, str(folder), str(out)], check=True, capture_output=True)
    np.testing.assert_allclose(pd.read_pickle(out), completed, atol=1e-5)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("place", ["attr_dict", "var_names", "model_state_dict", "file"])
def test_file_that_would_execute_code(saved, tmp_path, monkeypatch, place):
    folder, sign = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(saved[2], folder)
    content = torch.load(folder / "model.pt", weights_only=False)
    if place == "file":
        content = Bomb(sign)
    elif place == "var_names":
        content[place] = Bomb(sign)
    else:
        content[place]["more"] = Bomb(sign)
    torch.save(content, folder / "model.pt")
    # The file is dangerous where nothing is forbidden, and stays harmless where a user has allowed everything.
    torch.load(folder / "model.pt", weights_only=False)
    assert sign.exists()
    sign.unlink()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match=r"model\.pt holds more than weights .* Nothing of it was executed"):
        LGDiST.load(folder)
    assert not sign.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_damaged_file(saved, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(saved[2], folder)
    path = folder / "model.pt"
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:middle],
            "empty": b"",
            "text": b"not a model",
            "flipped": content[:100] + bytes(b ^ 255 for b in content[100:400]) + content[400:],
        }[damage]
    )
    with pytest.raises(ValueError, match=r"model\.pt (is damaged|holds more)"):
        LGDiST.load(folder)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ValueError, match=r"model\.pt is not a saved model"):
        LGDiST.load(folder)


def changed(folder, path, *, change):
    """A copy of a saved model whose file holds something else, without a manifest, as other versions write it."""
    shutil.copytree(folder, path)
    content = torch.load(path / "model.pt", weights_only=False)
    del content["lgdist_scvi_manifest"]
    change(content["attr_dict"], content["model_state_dict"])
    torch.save(content, path / "model.pt")
    return path


VERSIONS = {
    "option of the module": (
        lambda attributes, _: attributes["init_params_"]["kwargs"]["module_kwargs"].update(n_experts=4),
        r"saved by lgdist-scvi 9\.9, with options that .* does not have: n_experts\. Install",
    ),
    "option of the model": (
        lambda attributes, _: attributes["init_params_"]["non_kwargs"].update(schedule="edm"),
        "does not have: schedule",
    ),
    "option of the setup": (
        lambda attributes, _: attributes["registry_"]["setup_args"].update(protein_key="x"),
        "does not have: protein_key",
    ),
    "fewer weights": (lambda _, weights: weights.pop("share"), "weights that do not fit this version .*share"),
    "more weights": (
        lambda _, weights: weights.update(more=torch.ones(1)),
        "weights that do not fit this version .*more",
    ),
    "other weights": (
        lambda _, weights: weights.update(share=torch.ones(3)),
        "weights that do not fit this version .*share",
    ),
    "another class": (
        lambda attributes, _: attributes["registry_"].update(model_name="SCVI"),
        "holds a model of the class SCVI, not LGDiST",
    ),
}


@pytest.mark.parametrize(("change", "message"), VERSIONS.values(), ids=VERSIONS)
def test_model_of_another_version(saved, tmp_path, change, message):
    def of_another_version(attributes, weights):
        attributes["registry_"]["lgdist_scvi_version"] = "9.9"
        change(attributes, weights)

    with pytest.raises(ValueError, match=rf"(?s)model\.pt .*{message}"):
        LGDiST.load(changed(saved[2], tmp_path / "model", change=of_another_version))


def test_model_without_a_version(saved, small, tmp_path):
    """As the first releases saved it."""
    folder = changed(
        saved[2], tmp_path / "model", change=lambda attributes, _: attributes["registry_"].pop("lgdist_scvi_version")
    )
    pd.testing.assert_frame_equal(read(LGDiST.load(folder), small), saved[1])


def rewritten(path, change):
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def byte_changed(path):
    """One byte of the weights, as a disk or a network changes it; its checksum no longer fits."""
    with zipfile.ZipFile(path) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


CHANGED = {
    "byte": (byte_changed, "wrong checksum"),
    "weights swapped": (
        lambda path: rewritten(
            path, lambda c: c["model_state_dict"].update(share=c["model_state_dict"]["share"].flip(0))
        ),
        "its weights are not those that were saved",
    ),
    "names reversed": (
        lambda path: rewritten(path, lambda c: c.update(var_names=c["var_names"][::-1].copy())),
        "its names are not",
    ),
    "settings": (lambda path: rewritten(path, lambda c: c["attr_dict"].update(held_out_=0.2)), "its settings are not"),
    "names reversed, without a manifest": (
        lambda path: rewritten(
            path, lambda c: (c.pop("lgdist_scvi_manifest"), c.update(var_names=c["var_names"][::-1].copy()))
        ),
        "names of the genes",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGED.values(), ids=CHANGED)
def test_model_that_was_changed_after_it_was_saved(saved, tmp_path, change, message):
    path = tmp_path / "model.pt"
    shutil.copy(saved[2] / "model.pt", path)
    change(path)
    with pytest.raises(ValueError, match=rf"model\.pt is damaged.*{message}.* use a copy"):
        LGDiST.load(tmp_path, adata=saved[0].adata)


DAMAGED = {
    "no settings": lambda c: c.update(attr_dict=None),
    "no weights": lambda c: c.update(model_state_dict=[1]),
    "no registry": lambda c: c["attr_dict"].pop("registry_"),
    "registry of text": lambda c: c["attr_dict"].update(registry_="x"),
    "no options": lambda c: c["attr_dict"].pop("init_params_"),
    "options of another form": lambda c: c["attr_dict"]["init_params_"].update(kwargs=3),
    "setup of another form": lambda c: c["attr_dict"]["registry_"].update(setup_args=[1]),
    "weight of text": lambda c: c["model_state_dict"].update(share="x"),
    "seed of text": lambda c: c["attr_dict"].update(seed_="x"),
    "history of text": lambda c: c["attr_dict"].update(history_="x"),
    "fields of another form": lambda c: c["attr_dict"]["registry_"]["field_registries"].update(X=1),
    "option out of range": lambda c: c["attr_dict"]["init_params_"]["kwargs"]["module_kwargs"].update(n_layers=-1),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_dictionary(saved, tmp_path, change):
    path = tmp_path / "model.pt"
    shutil.copy(saved[2] / "model.pt", path)
    rewritten(path, lambda content: (content.pop("lgdist_scvi_manifest"), change(content)))
    with pytest.raises(ValueError, match=r"model\.pt is damaged.*Save the model again, or use a copy"):
        LGDiST.load(tmp_path, adata=saved[0].adata)


def test_options_that_need_all_memory_are_refused(saved, tmp_path):
    def grow(attributes, _):
        attributes["init_params_"]["kwargs"]["module_kwargs"].update(n_hidden=400_000)

    with pytest.raises(ValueError, match=r"weights that do not fit .*instead of torch\.Size.*400000"):
        LGDiST.load(changed(saved[2], tmp_path / "model", change=grow), adata=saved[0].adata)


@pytest.mark.parametrize("place", ["counts", "spatial", "names", "genes"])
def test_data_of_another_model(saved, small, tmp_path, place):
    folder = tmp_path / "model"
    shutil.copytree(saved[2], folder)
    adata = ad.read_h5ad(folder / "adata.h5ad")
    if place == "counts":
        adata.layers["counts"].data[7] += 1
    elif place == "spatial":
        adata.obsm["spatial"][0] += 0.1
    elif place == "names":
        adata.obs_names = adata.obs_names[::-1]
    else:
        adata = small.hide(small.tissue(n_genes=30))
    adata.write_h5ad(folder / "adata.h5ad")
    with pytest.raises(ValueError, match=r"adata\.h5ad is not as .*pass it as adata=\.\.\."):
        LGDiST.load(folder)
    # Nor does it stay the data of a model that was saved over it without any.
    saved[0].save(folder, overwrite=True)
    with pytest.raises(ValueError, match=r"adata\.h5ad does not hold the spots .*Pass adata=\.\.\."):
        LGDiST.load(folder)
    # Those of the model are, whatever else the user notes there.
    adata = saved[0].adata.copy()
    adata.obs["mine"] = 1.0
    adata.write_h5ad(folder / "adata.h5ad")
    assert "mine" in LGDiST.load(folder).adata.obs


def test_data_that_changed_is_not_saved_with_the_model(small, tmp_path):
    model = small.build(small.tissue())
    del model.adata.layers["counts"]
    model.save(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"changed since it was registered.*'counts'.*save_anndata=False"):
        model.save(tmp_path / "model", save_anndata=True)
    assert not (tmp_path / "model").exists()


def test_registry_is_read_as_safely(saved, tmp_path):
    assert LGDiST.load_registry(saved[2])["setup_args"]["library_key"] == "library_id"
    sign = tmp_path / "executed"
    torch.save(Bomb(sign), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="Nothing of it was executed"):
        LGDiST.load_registry(tmp_path)
    assert not sign.exists()


def test_one_process_at_a_time_saves(saved, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with sole_writer(folder / ".saving.lock", folder), pytest.raises(RuntimeError, match="another process or thread"):
        saved[0].save(folder, overwrite=True)
    saved[0].save(folder, overwrite=True)
    assert os.listdir(folder) == ["model.pt"]


def test_data_of_the_model_is_damaged(saved, tmp_path, monkeypatch):
    """Nothing reads a damaged file: with some HDF5 never comes to an end."""
    model, _, _ = saved
    folder = tmp_path / "model"
    shutil.copytree(saved[2], folder)
    content = (folder / "adata.h5ad").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ad, "read_h5ad", lambda path: pytest.fail("read"))
        for damaged in (content[: len(content) // 2], content[:5000] + bytes(256) + content[5256:]):
            (folder / "adata.h5ad").write_bytes(damaged)
            with pytest.raises(ValueError, match=r"adata\.h5ad is not as .*it was damaged or changed since"):
                LGDiST.load(folder)
        assert LGDiST.load(folder, adata=model.adata.copy()).is_trained
    (folder / "adata.h5ad").unlink()
    (folder / "adata.h5ad").mkdir()
    with pytest.raises(OSError, match=r"saved with .*model\.pt cannot be read: .*directory"):
        LGDiST.load(folder)
    (folder / "adata.h5ad").rmdir()
    # Saved over without its data.
    model.save(folder, overwrite=True)
    (folder / "adata.h5ad").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"saved with .*model\.pt cannot be read: .*truncated.*Pass adata=\.\.\."):
        LGDiST.load(folder)


def test_model_that_is_there_stays_until_the_new_one_is_whole(saved, small, tmp_path, monkeypatch):
    model, completed, folder = saved
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(path)

    def full(content, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(torch, "save", full)
        model.save(path, overwrite=True, save_anndata=True)
    assert sorted(os.listdir(path)) == ["adata.h5ad", "model.pt"]
    pd.testing.assert_frame_equal(read(LGDiST.load(path), small), completed)
    for target, error in ((None, TypeError), (path / "model.pt" / "deeper", NotADirectoryError)):
        with pytest.raises(error):
            model.save(target)


def test_model_that_was_not_trained_is_saved(small, tmp_path):
    """It knows no spots: arrays without entries."""
    adata = small.tissue()
    small.build(adata).save(tmp_path / "model")
    assert LGDiST.load(tmp_path / "model", adata=adata).history == {}


class Section(StrEnum):
    ONE, TWO = "one", "two"


class Key(StrEnum):
    COUNTS, SPATIAL, LIBRARY, BATCH, IMAGE = "counts", "spatial", "library_id", "domain", "X_image"
    OBSERVED, DEPTH, TARGET, GRAPH = "observed", "depth", "target", "mine"


class Loss(StrEnum):
    COUNTS = "counts"


DAYS = pd.to_datetime(["2024-01-01", "2024-03-01"])
GROUPS = {
    "times": list(DAYS),
    "times with a zone": list(DAYS.tz_localize("Europe/Berlin")),
    "dates": [day.date() for day in DAYS],
    "intervals": list(pd.interval_range(0, 2)),
    "periods": list(pd.period_range("2024-01", periods=2, freq="M")),
    "durations": list(pd.to_timedelta(["1D", "2D"])),
    "decimals": [Decimal("0.5"), Decimal("1.5")],
    "fractions": [Fraction(1, 2), Fraction(3, 2)],
    "enumeration": list(Section),
    "tuples": [("a", 1), ("a", 2)],
    "numbers": [1, 2],
    "truth": [False, True],
    "text": ["a", "b"],
}


@pytest.mark.parametrize("kind", GROUPS)
def test_names_of_groups_of_any_kind_are_saved(small, tmp_path, kind):
    adata = small.tissue(n_libraries=2)
    names = pd.Series([GROUPS[kind][i] for i in (adata.obs["library_id"] == "section_2")], index=adata.obs_names)
    adata.obs["slide"], adata.obs["chip"] = names, names.astype("category")
    model = small.build(adata, library_key="slide", batch_key="chip")
    model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model")
    completed = read(model, small, n_samples=0)
    for other in (adata, adata.copy()):
        loaded = LGDiST.load(tmp_path / "model", adata=other)
        pd.testing.assert_frame_equal(read(loaded, small, n_samples=0), completed)
    section = adata[adata.obs["library_id"] == "section_2"].copy()
    pd.testing.assert_frame_equal(read(loaded, small, section, n_samples=0), read(model, small, section, n_samples=0))
    # Once more, from a model that was loaded.
    loaded.save(tmp_path / "again")
    pd.testing.assert_frame_equal(read(LGDiST.load(tmp_path / "again", adata=adata), small, n_samples=0), completed)


def test_keys_of_an_enumeration_are_saved(small, tmp_path):
    adata = small.hide(small.tissue(n_libraries=2))
    LGDiST.setup_anndata(adata, "counts", library_key="library_id")
    for kind in ("connectivities", "distances"):
        adata.obsp[f"mine_{kind}"] = adata.obsp[f"lgdist_{kind}"]
    adata.obs["depth"] = np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    adata.var["target"] = np.arange(40) < 10
    keys = {"library_key": Key.LIBRARY, "batch_key": Key.BATCH, "image_key": Key.IMAGE, "observed_layer": Key.OBSERVED}
    keys |= {"size_factor_key": Key.DEPTH, "target_genes_key": Key.TARGET, "neighbors_key": Key.GRAPH}
    model = small.fit(small.build(adata, layer=Key.COUNTS, spatial_key=Key.SPATIAL, **keys), max_epochs=1)
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(read(LGDiST.load(tmp_path / "model", adata=adata), small), read(model, small))


def test_what_could_not_be_loaded_is_not_saved(saved, small, tmp_path):
    model = small.fit(small.build(small.tissue(), {"loss": Loss.COUNTS}), max_epochs=1)
    with pytest.raises(ValueError, match=r"cannot be saved.*a \S*Loss.*text, numbers"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    shutil.copytree(saved[2], tmp_path / "model")
    with pytest.raises(ValueError, match=r"cannot be saved"):
        model.save(tmp_path / "model", overwrite=True)
    pd.testing.assert_frame_equal(read(LGDiST.load(tmp_path / "model"), small), saved[1])


@pytest.mark.parametrize("copied", [lambda model: pickle.loads(pickle.dumps(model)), deepcopy], ids=["pickle", "copy"])
def test_pickled_and_copied(saved, small, copied):
    model, completed, _ = saved
    again = copied(model)
    assert again.adata is not model.adata and again.module is not model.module
    pd.testing.assert_frame_equal(read(again, small), completed)
    again.train_autoencoder(**small.TRAIN)
    pd.testing.assert_frame_equal(read(model, small), completed)


def test_data_that_changed_is_not_pickled_with_the_model(small):
    model = small.build(small.tissue())
    del model.adata.obsm["spatial"]
    with pytest.raises(
        ValueError, match=r"changed since it was registered.*load\(\) would refuse.*Save the model without"
    ):
        pickle.dumps(model)


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved model at .*nowhere.*model\.pt"):
        LGDiST.load(tmp_path / "nowhere")


def test_model_of_scvi_tools_itself(saved, small):
    """Interoperable: what we save is read by scvi-tools' own load, and read the same."""
    _, completed, folder = saved
    theirs = BaseModelClass.load.__func__(LGDiST, str(folder))
    pd.testing.assert_frame_equal(read(theirs, small), completed)
