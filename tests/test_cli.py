"""The command line, called as the console script calls it."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from lightning.pytorch import Callback

from lgdist_scvi import LGDiST, cli, datasets
from lgdist_scvi._demo import run_demo
from lgdist_scvi.model import _training

N_SPOTS, N_GENES = 120, 24
FAST = ["--max-epochs", "2", "--accelerator", "cpu", "--quiet"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "in.h5ad"
    adata = datasets.simulated_tissue(N_SPOTS, N_GENES, n_libraries=2)
    adata.obs["qc"] = np.arange(N_SPOTS)
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def completed(section: Path) -> Path:
    path = section.parent / "out.h5ad"
    before = digest(section)
    arguments = ["complete", str(section), str(path), "--layer", "counts", "--library-key", "library_id", "--std"]
    assert cli.main([*arguments, "--save-model", str(section.parent / "model"), "--seed", "3", *FAST]) == 0
    assert digest(section) == before
    return path


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any training a failure."""

    def train(*_, **__):
        raise AssertionError("trained before the mistake was noticed")

    monkeypatch.setattr(LGDiST, "train", train)


def complete(*arguments: object) -> int:
    return cli.main(["complete", *map(str, arguments), "--layer", "counts", "--library-key", "library_id", *FAST])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lgdist-scvi: error: ")
    return lines[0]


@pytest.mark.slow
def test_output_holds_the_input_and_the_completion(section: Path, completed: Path):
    before, after = anndata.read_h5ad(section), anndata.read_h5ad(completed)
    np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(after.layers["counts"].toarray(), before.layers["counts"].toarray())
    assert after.obs_names.equals(before.obs_names)
    assert after.var_names.equals(before.var_names)
    assert list(after.obs) == list(before.obs)
    assert set(after.uns) == {*before.uns, "lgdist", "lgdist_neighbors"}
    assert after.layers["lgdist"].shape == (N_SPOTS, N_GENES)
    assert after.layers["lgdist"].dtype == np.float32
    assert np.isfinite(after.layers["lgdist"]).all()
    np.testing.assert_array_equal(after.layers["lgdist_imputed"], before.X.toarray() == 0)
    assert (after.layers["lgdist_std"] > 0).all()
    assert after.obsm["X_lgdist"].shape[0] == N_SPOTS


@pytest.mark.slow
def test_output_says_where_its_values_come_from(completed: Path):
    record = anndata.read_h5ad(completed).uns["lgdist"]
    assert record["package"] == "lgdist-scvi"
    assert record["seed"] == 3
    assert record["n_samples"] == 0
    assert record["setup"] == {"layer": "counts", "library_key": "library_id"}
    assert record["training"] == {"seed": 3, "max_epochs": 2}
    assert list(record["scores"].index) == ["lgdist", "gene mean", "spatial neighbours"]


@pytest.mark.slow
def test_output_round_trips_and_its_model_loads(completed: Path, tmp_path: Path):
    adata = anndata.read_h5ad(completed)
    adata.write_h5ad(tmp_path / "again.h5ad")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.layers["lgdist"], adata.layers["lgdist"])
    model = LGDiST.load(completed.parent / "model", adata=adata, accelerator="cpu")
    np.testing.assert_allclose(model.get_completed_expression(seed=3, silent=True), adata.layers["lgdist"], atol=1e-5)


@pytest.mark.slow
def test_scores_are_printed_and_genes_selected(section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["complete", section, tmp_path / "out.h5ad", "--layer", "counts", "--library-key", "library_id"]
    arguments += ["--n-genes", 16, "--max-epochs", 1, "--accelerator", "cpu", "--keep-observed"]
    assert cli.main([*map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert "spatial neighbours" in printed.out
    assert "Traceback" not in printed.err
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert adata.n_vars == 16
    assert adata.var["target_gene"].sum() == 2
    assert adata.uns["lgdist"]["setup"]["size_factor_key"] == "total_counts"
    assert adata.uns["lgdist"]["keep_observed"]


def test_selected_genes_keep_the_depth_of_the_user(
    section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    adata = anndata.read_h5ad(section)
    adata.obs["total_counts"] = depth = np.arange(N_SPOTS) + 1e6
    adata.write_h5ad(tmp_path / "in.h5ad")
    arguments = tmp_path / "in.h5ad", tmp_path / "out.h5ad", "--n-genes", 8

    def train(model: LGDiST, *_, **__) -> None:
        np.testing.assert_array_equal(model._view().depth, depth)
        raise KeyboardInterrupt

    monkeypatch.setattr(LGDiST, "train", train)
    assert complete(*arguments, "--size-factor-key", "total_counts") == 130
    capsys.readouterr()
    adata.obs["total_counts"] = 1.0
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert complete(*arguments) == 2
    assert "pass --size-factor-key 'total_counts'; else delete it" in error_line(capsys)


def test_columns_of_the_user_stay(section: Path, tmp_path: Path):
    """Also those that scvi-tools would write for itself."""
    adata = anndata.read_h5ad(section)
    names = ["_scvi_batch", "_scvi_library", "_scvi_labels", "_scvi_score"]
    for i, name in enumerate(names):
        adata.obs[name] = np.arange(N_SPOTS) + 100 * i
    adata.uns["_scvi_note"] = "mine"
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert complete(tmp_path / "in.h5ad", tmp_path / "out.h5ad") == 0
    after = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(after.obs) == list(adata.obs) and after.obs[names].equals(adata.obs[names])
    assert [name for name in after.uns if name.startswith("_scvi")] == ["_scvi_note"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing(
    section: Path,
    tmp_path: Path,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def write_half(self: AnnData, filename: Path, **_) -> None:
        Path(filename).write_bytes(b"half a file")
        assert list(tmp_path.iterdir())
        raise error("in the middle")

    monkeypatch.setattr(AnnData, "write_h5ad", write_half)
    assert complete(section, tmp_path / "out.h5ad") == (2 if error is OSError else 130)
    assert "lgdist-scvi: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_training_leaves_nothing(
    section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LGDiST, "train", stop)
    assert complete(section, tmp_path / "out.h5ad") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="other signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("when", ["training", "writing"])
def test_stopped_by_a_signal(
    request, section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str, when: str
):
    number = getattr(signal, name)
    # As a shell starts it: below nohup, or after another test, it may be otherwise.
    outer = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, outer))

    class Stop(Callback):
        def on_train_batch_end(self, *_, **__):
            os.kill(os.getpid(), number)

    def write_half(self: AnnData, filename: Path, **_) -> None:
        Path(filename).write_bytes(b"half a file")
        os.kill(os.getpid(), number)

    if when == "training":
        train = LGDiST.train
        monkeypatch.setattr(LGDiST, "train", lambda *args, **options: train(*args, callbacks=[Stop()], **options))
    monkeypatch.setattr(AnnData, "write_h5ad", write_half)
    assert complete(section, tmp_path / "out.h5ad") == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {name}, no output was written" in said and "Exception" not in said
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is signal.SIG_DFL


def test_ignored_signal_stays_ignored(section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As below nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        monkeypatch.setattr(LGDiST, "train", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(RuntimeError, match="has not been trained"):
            complete(section, tmp_path / "out.h5ad")
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("untrained")
class TestMistakes:
    def test_existing_output(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        output = tmp_path / "out.h5ad"
        output.write_text("precious")
        assert complete(section, output) == 2
        assert "--overwrite" in error_line(capsys)
        assert output.read_text() == "precious"

    @pytest.mark.parametrize("link", [None, os.symlink, os.link])
    def test_output_is_input(self, section: Path, tmp_path: Path, link, capsys: pytest.CaptureFixture[str]):
        before, output = digest(section), section
        if link is not None:
            output = tmp_path / "other_name.h5ad"
            try:
                link(section, output)
            except OSError:
                pytest.skip("this file system has no such links")
        assert complete(section, output, "--overwrite") == 2
        assert "never changed" in error_line(capsys)
        assert digest(section) == before

    def test_missing_input(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(tmp_path / "none.h5ad", tmp_path / "out.h5ad") == 2
        assert "none.h5ad does not exist" in error_line(capsys)

    def test_input_of_another_kind(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        text = tmp_path / "in.h5ad"
        text.write_text("spot,gene\n")
        assert complete(text, tmp_path / "out.h5ad") == 2
        assert "cannot be read" in error_line(capsys)

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("--layer", "layers['none']"),
            ("--spatial-key", "correct --spatial-key"),
            ("--library-key", "correct --library-key"),
            ("--image-key", "correct --image-key"),
            ("--target-genes-key", "correct --target-genes-key"),
        ],
    )
    def test_missing_key(self, section: Path, tmp_path: Path, option: str, said: str, capsys):
        arguments = ["--layer", "counts", "--library-key", "library_id", *FAST, option, "none"]
        assert cli.main(["complete", str(section), str(tmp_path / "out.h5ad"), *arguments]) == 2
        line = error_line(capsys)
        assert "none" in line
        assert said in line
        assert list(tmp_path.iterdir()) == []

    def test_missing_key_with_selected_genes(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / "out.h5ad", "--n-genes", "16", "--spatial-key", "none") == 2
        assert "correct --spatial-key" in error_line(capsys)

    def test_values_that_are_no_counts(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        arguments = ["--layer", "rate", "--library-key", "library_id", *FAST]
        assert cli.main(["complete", str(section), str(tmp_path / "out.h5ad"), *arguments]) == 2
        assert "not whole numbers" in error_line(capsys)

    def test_missing_folder(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / "none" / "out.h5ad") == 2
        assert "does not exist" in error_line(capsys)

    def test_unwritable_folder(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert complete(section, folder / "out.h5ad") == 2
        assert "cannot be written to" in error_line(capsys)

    def test_full_or_read_only_disk(self, section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
        def refuse(*_, **__):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        assert complete(section, tmp_path / "out.h5ad") == 2
        assert "Read-only file system" in error_line(capsys)

    def test_output_is_a_folder(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path, "--overwrite") == 2
        assert "is a folder" in error_line(capsys)

    def test_existing_model_folder(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        (tmp_path / "model").mkdir()
        assert complete(section, tmp_path / "out.h5ad", "--save-model", tmp_path / "model") == 2
        assert "--save-model" in error_line(capsys)

    @pytest.mark.parametrize("name", ["in.h5ad", "model.pt"])
    def test_model_folder_is_that_of_the_input(self, section: Path, tmp_path: Path, name: str, capsys):
        folder = tmp_path / "data"
        folder.mkdir()
        shutil.copy(section, folder / name)
        assert complete(folder / name, tmp_path / "out.h5ad", "--save-model", folder, "--overwrite") == 2
        assert "--save-model" in error_line(capsys)
        assert digest(folder / name) == digest(section) and os.listdir(folder) == [name]

    def test_model_file_is_the_output(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / "model.pt", "--save-model", tmp_path, "--overwrite") == 2
        assert "--save-model" in error_line(capsys)

    def test_std_of_the_other_read_out(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / "out.h5ad", "--std", "--read-out", "detected") == 2
        assert "--std" in error_line(capsys)

    @pytest.mark.parametrize(
        "arguments", [["--max-epochs", "0"], ["--seed", "-1"], ["--scale", "log2"], ["--see", "1"]]
    )
    def test_unusable_options(self, section: Path, tmp_path: Path, arguments: list[str]):
        with pytest.raises(SystemExit) as stopped:
            complete(section, tmp_path / "out.h5ad", *arguments)
        assert stopped.value.code == 2

    @pytest.mark.parametrize("arguments", [["--seed", str(2**32)], ["--max-epochs", "9" * 20]])
    def test_options_out_of_proportion(self, section: Path, tmp_path: Path, arguments: list[str]):
        with pytest.raises(SystemExit) as stopped:
            complete(section, tmp_path / "out.h5ad", *arguments)
        assert stopped.value.code == 2

    def test_more_threads_than_make_sense(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / "out.h5ad", "--threads", 10**6) == 2
        assert "--threads 1000000 is out of proportion" in error_line(capsys)

    @pytest.mark.parametrize(("part", "name"), [("layers", "lgdist"), ("layers", "lgdist_std"), ("obsm", "X_lgdist")])
    def test_names_of_the_output_are_taken(self, section: Path, tmp_path: Path, part: str, name: str, capsys):
        adata = anndata.read_h5ad(section)
        getattr(adata, part)[name] = np.ones(adata.shape)
        adata.write_h5ad(tmp_path / "in.h5ad")
        assert complete(tmp_path / "in.h5ad", tmp_path / "out.h5ad") == 2
        line = error_line(capsys)
        assert f"{part}[{name!r}]" in line and "rename it" in line

    def test_model_folder_is_the_output(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / "out", "--save-model", tmp_path / "out") == 2
        assert "is the output; name another one for --save-model" in error_line(capsys)

    def test_name_that_is_too_long(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        assert complete(section, tmp_path / f"{'a' * 300}.h5ad") == 2
        assert "choose a shorter" in error_line(capsys)
        assert list(tmp_path.iterdir()) == []

    def test_damaged_matrix(self, section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        adata = anndata.read_h5ad(section)
        adata.layers["counts"].indptr[3] = 10**7
        adata.write_h5ad(tmp_path / "in.h5ad")
        assert complete(tmp_path / "in.h5ad", tmp_path / "out.h5ad") == 2
        assert "is damaged" in error_line(capsys)

    def test_demo_without_igraph(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
        assert "igraph" in error_line(capsys)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("Can't decrement id ref count")])
def test_disk_that_is_full_for_the_model_or_the_file(section: Path, tmp_path: Path, monkeypatch, capsys, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(AnnData, "write_h5ad", full)
    assert complete(section, tmp_path / "out.h5ad") == 2
    assert "out.h5ad could not be written" in capsys.readouterr().err
    monkeypatch.setattr("lgdist_scvi.model._saving.torch.save", full)
    assert complete(section, tmp_path / "out.h5ad", "--save-model", tmp_path / "model") == 2
    assert "could not be saved" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bugs_show_where_they_are(section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise ValueError("a bug of ours")

    monkeypatch.setattr(_training.TrainingMixin, "train", fail)
    with pytest.raises(ValueError, match="a bug of ours"):
        complete(section, tmp_path / "out.h5ad")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="other pipes")
def test_demo_whose_text_has_no_reader(tmp_path: Path):
    """As below ``head -1``: what is wanted are the files."""
    pytest.importorskip("igraph")
    code = f"from lgdist_scvi._demo import run_demo; from pathlib import Path; run_demo(Path({str(tmp_path)!r}), n_spots=120, n_genes=40, max_epochs=1, accelerator='cpu')"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False, text=True)
    os.close(writer)
    assert run.returncode == 0 and "Traceback" not in run.stderr and "Error" not in run.stderr, run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"completed.h5ad", "completion.png"}


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("igraph")
    run_demo(tmp_path / "demo", accelerator="cpu", n_spots=120, n_genes=40, max_epochs=1)
    printed = capsys.readouterr().out
    for words in ("spatial neighbours", "measured", "completed", "ari_domains", "completed.h5ad", "completion.png"):
        assert words in printed
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"completed.h5ad", "completion.png"}
    adata = anndata.read_h5ad(tmp_path / "demo" / "completed.h5ad")
    assert {"counts", "lgdist", "lgdist_imputed"} <= set(adata.layers)
    assert {"leiden_measured", "leiden_completed"} <= set(adata.obs)
    assert (tmp_path / "demo" / "completion.png").read_bytes().startswith(b"\x89PNG")


def test_another_format_is_refused_before_training(section: Path, tmp_path: Path, untrained, capsys):
    assert complete(section, tmp_path / "out.csv") == 2
    assert "out.csv does not end in .h5ad" in error_line(capsys)
