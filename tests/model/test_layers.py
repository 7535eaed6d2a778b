"""Completed layers in memory and on disk: the same, whatever happens on the way."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from lgdist_scvi import LGDiST
from lgdist_scvi._exclusive import sole_writer
from lgdist_scvi.model import _layers, _streaming

OPTIONS = {"n_samples": 2, "n_steps": 2, "silent": True, "batch_size": 32}


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of one minibatch each: 150 spots make five."""
    monkeypatch.setattr(_streaming, "BLOCK_BYTES", 1)


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def equal(one, other):
    return np.array_equal(*(a.toarray() if sparse.issparse(a) else np.asarray(a) for a in (one, other)))


def assert_same(path, other):
    """All but the numbers that scvi-tools gives each registration."""
    one, two = read(path), read(other)
    assert set(one.layers) == set(two.layers) and equal(one.X, two.X)
    for name in two.layers:
        assert equal(one.layers[name], two.layers[name]), name
    assert one.obs.equals(two.obs) and one.uns["lgdist"] == two.uns["lgdist"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("return_std", [False, True])
def test_file_is_that_of_the_completed_layer(trained, blocks, tmp_path, suffix, return_std):
    adata = trained.adata.copy()
    adata.obs["name"] = [f"spot {i}" for i in range(adata.n_obs)]
    adata.raw = adata[:, :7].copy()
    before = adata.copy()
    path = tmp_path / f"completed{suffix}"
    trained.write_completed(path, adata, return_std=return_std, key_added="full", **OPTIONS)
    written = read(path)
    assert set(adata.layers) == set(before.layers)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert equal(written.raw.X, before.raw.X) and list(written.raw.var_names) == list(before.raw.var_names)
    expected = before.copy()
    trained.add_completed_layer(expected, return_std=return_std, key_added="full", **OPTIONS)
    assert list(written.obs_names) == list(expected.obs_names) and list(written.var_names) == list(expected.var_names)
    assert set(written.layers) == set(expected.layers)
    for name in expected.layers:
        assert written.layers[name].dtype == expected.layers[name].dtype
        assert equal(written.layers[name], expected.layers[name]), name
    for part in ("obsm", "obsp", "varm"):
        assert set(getattr(written, part)) == set(getattr(expected, part))
        assert all(equal(value, getattr(expected, part)[name]) for name, value in getattr(written, part).items())
    assert written.uns["full"] == expected.uns["full"] and written.uns["full"]["n_samples"] == 2
    assert set(written.obs) == set(expected.obs) and list(written.obs["name"]) == list(expected.obs["name"])
    assert os.listdir(tmp_path) == [path.name]


def test_standard_deviation_of_an_earlier_completion_is_not_written(trained, tmp_path):
    adata = trained.adata.copy()
    trained.add_completed_layer(adata, return_std=True, **OPTIONS)
    trained.write_completed(tmp_path / "a.h5ad", adata, scale="counts", **OPTIONS)
    assert "lgdist_std" not in read(tmp_path / "a.h5ad").layers and "lgdist_std" in adata.layers


def test_written_file_serves_the_model_again(trained, tmp_path):
    trained.write_completed(tmp_path / "a.h5ad", **OPTIONS)
    again = trained.get_completed_expression(ad.read_h5ad(tmp_path / "a.h5ad"), return_numpy=True, **OPTIONS)
    np.testing.assert_array_equal(again, ad.read_h5ad(tmp_path / "a.h5ad").layers["lgdist"])


def test_goes_on_where_it_was(trained, blocks, tmp_path, monkeypatch):
    trained.write_completed(tmp_path / "whole.h5ad", **OPTIONS)
    path, save, saved = tmp_path / "part.h5ad", _streaming.Blocks.save, []

    def interrupted(self, block, arrays):
        save(self, block, arrays)
        saved.append(block)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_streaming.Blocks, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.write_completed(path, **OPTIONS)
    assert not path.exists()
    trained.write_completed(path, **OPTIONS)
    assert saved == list(range(5))
    assert_same(path, tmp_path / "whole.h5ad")


def test_full_disk_in_the_words_of_hdf5(trained, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Can't decrement id ref count (file write failed: errno = 28)")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"a\.h5ad could not be written.*repeat the call"):
        patch.setattr(ad.AnnData, "write_h5ad", full)
        trained.write_completed(tmp_path / "a.h5ad", **OPTIONS)
    trained.write_completed(tmp_path / "a.h5ad", **OPTIONS)


def test_full_disk(trained, blocks, tmp_path, monkeypatch):
    savez, calls = np.savez, []

    def full(file, *arrays):
        calls.append(file)
        if len(calls) == 3:
            file.write(b"half a block")
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, *arrays)

    monkeypatch.setattr(np, "savez", full)
    path = tmp_path / "a.h5ad"
    with pytest.raises(OSError, match="No space left") as caught:
        trained.write_completed(path, **OPTIONS)
    assert "a.h5ad.partial; repeat the call" in caught.value.__notes__[0]
    kept = sorted(os.listdir(tmp_path / "a.h5ad.partial"))
    assert kept == ["block_000000.npz", "block_000001.npz", "job.json"]
    trained.write_completed(path, **OPTIONS)
    assert len(calls) == 3 + 3 and read(path).layers["lgdist"].shape == trained.adata.shape


def test_part_of_another_completion(trained, blocks, small, tmp_path, monkeypatch):
    path = tmp_path / "a.h5ad"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_layers, "write_extended", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        trained.write_completed(path, **OPTIONS)
    with pytest.raises(ValueError, match=r"a\.h5ad\.partial holds a part of another completion \(seed differ\)"):
        trained.write_completed(path, seed=1, **OPTIONS)
    changed = trained.adata.copy()
    changed.layers["counts"] = changed.layers["counts"].copy()
    changed.layers["counts"].data[0] += 1
    with pytest.raises(ValueError, match=r"\(data differ\)"):
        trained.write_completed(path, changed, **OPTIONS)
    trained.write_completed(path, **OPTIONS)


def test_unusable_targets(trained, tmp_path):
    (tmp_path / "there.zarr").mkdir()
    (tmp_path / "there.h5ad").write_text("mine")
    for name in ("there.h5ad", "there.zarr"):
        with pytest.raises(FileExistsError, match="overwrite=True"):
            trained.write_completed(tmp_path / name, **OPTIONS)
    with pytest.raises(FileNotFoundError, match="create it first"):
        trained.write_completed(tmp_path / "nowhere" / "a.h5ad", **OPTIONS)
    with pytest.raises(ValueError, match=r"\.h5ad or \.zarr"):
        trained.write_completed(tmp_path / "a.csv", **OPTIONS)
    with pytest.raises(TypeError, match="gene_list"):
        trained.write_completed(tmp_path / "a.h5ad", gene_list=["gene_0"], **OPTIONS)
    with pytest.raises(ValueError, match="n_steps=0"):
        trained.write_completed(tmp_path / "a.h5ad", **(OPTIONS | {"n_steps": 0}))
    assert sorted(os.listdir(tmp_path)) == ["there.h5ad", "there.zarr"]
    assert (tmp_path / "there.h5ad").read_text() == "mine"
    for name in ("there.h5ad", "there.zarr"):
        trained.write_completed(tmp_path / name, overwrite=True, **OPTIONS)
        assert "lgdist" in read(tmp_path / name).layers


@pytest.mark.parametrize("files", [["mine.txt"], ["job.json"], ["block_000000.npz"]])
def test_folder_of_the_user_beside_the_output_is_kept(trained, tmp_path, files):
    folder = tmp_path / "a.h5ad.partial"
    folder.mkdir()
    for file in files:
        (folder / file).write_text("mine")
    with pytest.raises(ValueError, match=r"a\.h5ad\.partial .*not written by write_completed.*another path"):
        trained.write_completed(tmp_path / "a.h5ad", **OPTIONS)
    assert {file: (folder / file).read_text() for file in os.listdir(folder)} == dict.fromkeys(files, "mine")
    assert os.listdir(tmp_path) == [folder.name]


def test_what_the_user_puts_among_the_blocks_is_kept(trained, blocks, tmp_path, monkeypatch):
    path, folder = tmp_path / "a.h5ad", tmp_path / "a.h5ad.partial"
    save = _streaming.Blocks.save

    def save_and_note(self, block, arrays):
        save(self, block, arrays)
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(_streaming.Blocks, "save", save_and_note)
    trained.write_completed(path, **OPTIONS)
    assert "lgdist" in read(path).layers and os.listdir(folder) == ["notes.txt"]


def begun(trained, path, monkeypatch):
    """A completion with all blocks and without its file."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_layers, "write_extended", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        trained.write_completed(path, **OPTIONS)
    return path.with_name(f"{path.name}.partial")


def zeroed(block, other):
    content = bytearray(block.read_bytes())
    content[300:500] = bytes(200)
    block.write_bytes(content)


def other_values(block, other):
    with np.load(block) as arrays:
        values = [arrays[name] for name in arrays]
    np.savez(block, values[0] + 1, *values[1:])


DAMAGE = {
    "empty": lambda block, other: block.write_bytes(b""),
    "half": lambda block, other: block.write_bytes(block.read_bytes()[:1000]),
    "text": lambda block, other: block.write_text("not a block"),
    "zeroed": zeroed,
    "other values": other_values,
    "another block": lambda block, other: block.write_bytes(other.read_bytes()),
    "other arrays": lambda block, other: np.savez(block, np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_block_is_computed_again(trained, blocks, tmp_path, monkeypatch, damage):
    path = tmp_path / "a.h5ad"
    folder = begun(trained, path, monkeypatch)
    damage(folder / "block_000001.npz", folder / "block_000002.npz")
    with pytest.warns(UserWarning, match=r"block_000001\.npz is damaged .*computed again"):
        trained.write_completed(path, **OPTIONS)
    np.testing.assert_array_equal(
        read(path).layers["lgdist"], trained.get_completed_expression(return_numpy=True, **OPTIONS)
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", None),
        ("job.json", b"\xff\x00"),
        ("job.json", b"[1]"),
        ("job.json", b'{"seed": 0}'),
        ("block_000001.npz", None),
    ],
    ids=["folder", "bytes", "list", "part", "block"],
)
def test_damaged_folder_of_blocks(trained, blocks, tmp_path, monkeypatch, name, content):
    path = tmp_path / "a.h5ad"
    folder = begun(trained, path, monkeypatch)
    (folder / name).unlink()
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.h5ad\.partial.* not written by write_completed.*another path"):
        trained.write_completed(path, **OPTIONS)
    assert not path.exists() and (folder / name).exists()


def test_second_process_is_refused(trained, tmp_path):
    path = tmp_path / "a.h5ad"
    with sole_writer(tmp_path / ".a.h5ad.lock", path), pytest.raises(RuntimeError, match="another process or thread"):
        trained.write_completed(path, **OPTIONS)
    assert os.listdir(tmp_path) == []


def test_file_that_appears_meanwhile_stays(trained, tmp_path, monkeypatch):
    path, write = tmp_path / "a.h5ad", _layers.write_extended

    def write_and_wait(*arguments):
        write(*arguments)
        path.write_text("mine")

    monkeypatch.setattr(_layers, "write_extended", write_and_wait)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        trained.write_completed(path, **OPTIONS)
    assert path.read_text() == "mine"


def stores(tmp_path):
    """Folders that are no completed AnnData, with what must stay."""
    (tmp_path / "results.h5ad").mkdir()
    (tmp_path / "results.zarr").mkdir()
    for name in ("results.h5ad", "results.zarr"):
        (tmp_path / name / "mine.txt").write_text("mine")
    zarr.open_group(tmp_path / "group.zarr", mode="w").create_group("tables")
    return ["results.h5ad", "results.zarr", "group.zarr"]


def test_folder_named_as_the_output_is_kept(trained, tmp_path):
    for name in stores(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FileExistsError, match=rf"{name} is .*another name"):
            trained.write_completed(tmp_path / name, overwrite=True, **OPTIONS)
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file.zarr").write_text("mine")
    with pytest.raises(FileExistsError, match=r"file\.zarr is .*another name"):
        trained.write_completed(tmp_path / "file.zarr", overwrite=True, **OPTIONS)


# Each completion in a process of its own, a copy of one that has imported everything.
KILLED = """
import json, os, signal, sys, traceback
import numpy as np
from lgdist_scvi import LGDiST
from lgdist_scvi.model import _layers, _streaming

folder, completions = sys.argv[1], json.loads(sys.argv[2])
_streaming.BLOCK_BYTES = 1
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
savez, write, n = np.savez, _layers.write_extended, 0

def half_a_block(file, *arrays):
    global n
    n += 1
    if n == 3:
        file.write(b"half"); file.flush(); kill()
    savez(file, *arrays)

def half_a_file(adata, layers, uns, path, replaced):
    write(adata, layers, uns, path, replaced)
    with open(path, "r+b") as file:
        file.truncate(1000)
    kill()

def complete(path, when):
    if when == "block":
        np.savez = half_a_block
    if when == "file":
        _layers.write_extended = half_a_file
    LGDiST.load(folder).write_completed(path, n_samples=2, n_steps=2, silent=True, batch_size=32)

ended = []
for path, when in completions:
    pid = os.fork()
    if pid == 0:
        try:
            complete(path, when)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ended.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.path.exists(path)])
print(json.dumps(ended))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_and_repeated(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    whole, path = tmp_path / "whole.h5ad", tmp_path / "killed.h5ad"
    completions = [[str(whole), "never"], *([str(path), when] for when in ("block", "block", "file", "never"))]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), json.dumps(completions)]
    run = subprocess.run(command, capture_output=True, check=False, text=True)
    assert run.returncode == 0, run.stderr
    killed = [-signal.SIGKILL, False]
    assert json.loads(run.stdout.splitlines()[-1]) == [[0, True], killed, killed, killed, [0, True]], run.stderr
    assert_same(path, whole)
    assert not Path(f"{path}.partial").exists()


@pytest.mark.parametrize("suffix", ["", "_imputed", "_std"])
@pytest.mark.parametrize("role", ["layer", "observed_layer"])
def test_completed_layers_are_not_measurements(trained, suffix, role):
    adata = trained.adata.copy()
    trained.add_completed_layer(adata, return_std=True, key_added="full", **OPTIONS)
    names = {"layer": "counts", "observed_layer": "observed"} | {role: f"full{suffix}"}
    with pytest.raises(ValueError, match=rf"layers\['full{suffix}'\] was written by a completion .*measured values"):
        LGDiST.setup_anndata(adata, library_key="library_id", **names)
    # A name that only looks like one is fine.
    adata.layers["counts_std"] = adata.layers["counts"].copy()
    LGDiST.setup_anndata(adata, library_key="library_id", layer="counts_std", observed_layer="observed")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("counts", r"layers\['counts'\] already, not written by a completion; pass another key_added"),
        ("observed", r"layers\['observed'\] already"),
        ("spatial", r"uns\['spatial'\] already"),
        ("", "key_added='' must be a name"),
        (3, "key_added=3 must be a name"),
        # Files have folders of layers instead, or cannot be written.
        ("a/b", "key_added='a/b' must be a name.* slash"),
        ("a\\b", "key_added=.* must be a name.* slash"),
        ("..", "key_added='..' must be a name"),
    ],
)
def test_what_is_there_is_not_replaced(trained, tmp_path, key, message):
    adata = trained.adata.copy()
    adata.uns["spatial"] = {"section": {"images": {}}}
    before = adata.layers["counts"].copy()
    with pytest.raises(ValueError, match=message):
        trained.add_completed_layer(adata, key_added=key, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        trained.write_completed(tmp_path / "a.h5ad", adata, key_added=key, **OPTIONS)
    assert (adata.layers["counts"] != before).nnz == 0 and os.listdir(tmp_path) == []
    trained.add_completed_layer(adata, key_added="full", **OPTIONS)
    trained.add_completed_layer(adata, key_added="full", seed=1, **OPTIONS)
    assert adata.uns["full"]["seed"] == 1


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_full_disk_at_the_end(trained, tmp_path, monkeypatch, suffix):
    """While the file itself is written: what was there stays, and the blocks are kept."""
    path = tmp_path / f"a{suffix}"
    trained.write_completed(path, **OPTIONS)
    before = np.asarray(read(path).layers["lgdist"])

    def full(self, path, **_):
        Path(path).mkdir() if suffix == ".zarr" else Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as caught:
        patch.setattr(ad.AnnData, f"write_{suffix[1:]}", full)
        trained.write_completed(path, overwrite=True, seed=1, **OPTIONS)
    assert f"a{suffix}.partial; repeat the call" in caught.value.__notes__[0]
    np.testing.assert_array_equal(read(path).layers["lgdist"], before)
    trained.write_completed(path, overwrite=True, seed=1, **OPTIONS)
    assert (np.asarray(read(path).layers["lgdist"]) != before).any() and os.listdir(tmp_path) == [path.name]
