"""Mistakes of every kind: an error of ours that names the culprit and the remedy, before anything is trained."""

import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import lgdist_scvi
from lgdist_scvi import LGDiST
from lgdist_scvi.model import _training
from lgdist_scvi.train._runner import PhaseRunner

PACKAGE = str(Path(lgdist_scvi.__file__).parent)


def ours(caught, message):
    """Whether the error was raised by a check of the package."""
    assert traceback.extract_tb(caught.value.__traceback__)[-1].filename.startswith(PACKAGE)
    return caught.match(message)


@pytest.fixture(scope="module")
def model(small):
    return small.build(small.tissue(n_spots=120))


@pytest.fixture
def untrained(monkeypatch):
    def run(*_):
        raise AssertionError("trained before the mistake was noticed")

    monkeypatch.setattr(PhaseRunner, "run", run)
    monkeypatch.setattr(_training, "fit_field", run)


TRAININGS = {
    "negative rate": ({"autoencoder_plan_kwargs": {"lr": -1}}, ValueError, r"lr=-1 must be a finite number"),
    "rate NaN": ({"autoencoder_plan_kwargs": {"lr": float("nan")}}, ValueError, r"lr=nan must be"),
    "rate of text": ({"autoencoder_plan_kwargs": {"lr": "x"}}, ValueError, r"lr='x' must be"),
    "rate of the second phase": ({"diffusion_plan_kwargs": {"lr": -1}}, ValueError, r"lr=-1 must be"),
    "decay NaN": ({"autoencoder_plan_kwargs": {"weight_decay": float("nan")}}, ValueError, r"weight_decay=nan must"),
    "average": ({"autoencoder_plan_kwargs": {"ema_decay": 2.0}}, ValueError, r"ema_decay=2\.0 must be in \[0, 1\)"),
    "list of options": ({"autoencoder_plan_kwargs": [1]}, TypeError, r"autoencoder_plan_kwargs=\[1\].* dictionary"),
    "dry run": ({"fast_dev_run": True}, ValueError, r"fast_dev_run .*max_epochs=1"),
    "no minibatches": ({"limit_train_batches": 0}, ValueError, r"limit_train_batches=0 .*leave it out"),
    "no steps": ({"max_steps": 0}, ValueError, r"max_steps=0 .*leave it out"),
    "no validation": ({"limit_val_batches": 0}, ValueError, r"limit_val_batches=0 .*early_stopping=False"),
    "processes": ({"devices": 5000}, ValueError, r"devices=5000 would start as many processes"),
    "accelerator": (
        {"accelerator": "tpux"},
        ValueError,
        r"accelerator='tpux' .*leave both out.*invalid accelerator name",
    ),
    "accelerator None": ({"accelerator": None}, ValueError, r"accelerator=None .*leave both out"),
    "GPU": pytest.param(
        *({"accelerator": "gpu"}, ValueError, r"accelerator='gpu' with devices='auto' cannot be used on this machine"),
        marks=pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is one"),
    ),
    "no devices": ({"devices": 0}, ValueError, r"devices=0 cannot be used .*leave both out"),
    "devices by number": ({"devices": [0, 1]}, ValueError, r"devices=\[0, 1\] cannot be used"),
    "devices of text": ({"devices": "x"}, ValueError, r"devices='x' cannot be used"),
    "strategy": ({"strategy": "x"}, ValueError, r"Lightning refuses an argument: .*'x'.*given were .*strategy"),
    "precision": ({"precision": "64-true"}, ValueError, r"precision='64-true' is not supported.*leave precision out"),
    "callbacks": ({"callbacks": [3]}, TypeError, r"callbacks=\[3\] must be callbacks of lightning"),
    "logger": ({"logger": 3}, TypeError, r"logger=\[3\] must be True, False, or loggers"),
    "nodes": ({"num_nodes": 0}, ValueError, r"num_nodes=0 must be a whole number"),
    "unknown argument": ({"max_epoch": 3}, TypeError, r"max_epoch'.*leave it out; given were .*max_epoch"),
}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("options", "error", "message"), TRAININGS.values(), ids=list(TRAININGS))
def test_training(model, small, options, error, message):
    with pytest.raises(error) as caught:
        small.fit(model, **options)
    assert ours(caught, message)


GENES = {
    "mask": (np.arange(40) < 3, TypeError, r"40 that are no text.* adata\.var_names\[numbers_or_mask\]"),
    "numbers": ([0, 1], TypeError, r"2 that are no text: \[0, 1\]"),
    "number": (3, TypeError, r"1 that are no text: \[3\]"),
    "lists": ([["gene_1"], ["gene_2"]], TypeError, r"2 that are no text"),
}


@pytest.mark.parametrize(("genes", "error", "message"), GENES.values(), ids=GENES)
def test_genes(trained, genes, error, message):
    with pytest.raises(error) as caught:
        trained.get_completed_expression(gene_list=genes, silent=True)
    assert ours(caught, message)


def test_genes_from_a_generator(trained):
    completed = trained.get_completed_expression(gene_list=(gene for gene in ("gene_2", "gene_1")), silent=True)
    assert list(completed) == ["gene_2", "gene_1"]


@pytest.mark.parametrize("seed", [2**32, 2**70])
def test_seed_that_not_all_generators_take(trained, small, seed):
    for attempt in (
        lambda: trained.get_completed_expression(seed=seed, silent=True),
        lambda: LGDiST(trained.adata, seed=seed),
    ):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert ours(caught, rf"seed={seed} must be at most 4294967295")


def test_numbers_of_numpy_are_numbers(trained, small, tmp_path):
    """Also where they go into generators and files."""
    for seed in (2, np.int64(2)):
        trained.write_completed(tmp_path / f"{type(seed).__name__}.h5ad", seed=seed, silent=True)
    one, other = (trained.detect_expression(n_spots=9, seed=seed, silent=True) for seed in (2, np.int64(2)))
    assert one.equals(other)
    small.build(small.tissue(), {"seed": np.int64(2)}).save(tmp_path / "model", save_anndata=True)
    LGDiST.load(tmp_path / "model")


CALLS = {
    "flag": (
        lambda model: model.get_completed_expression(keep_observed=np.zeros(3)),
        TypeError,
        "must be True or False",
    ),
    "aligned": (lambda model: model.get_latent_representation(aligned=[]), TypeError, r"aligned=\[\] must be True or"),
    "path": (lambda model: model.write_completed(3), TypeError, "path=3 must be a path"),
    "folder": (lambda model: model.save(None), TypeError, "dir_path=None must be a path"),
    "prefix": (lambda model: model.save("model", prefix="a/b"), ValueError, "prefix='a/b' must be a name"),
    "fraction": (lambda model: model.evaluate_completion(fraction=[0.5]), ValueError, r"fraction=\[0\.5\] must be"),
    "error": (lambda model: model.detect_expression(n_spots=5, error="x"), ValueError, "error='x' must be between 0"),
    "groups": (
        lambda model: model.get_region_expression(groupby=["a"]),
        TypeError,
        r"groupby=\['a'\] must be one name",
    ),
    "layer": (
        lambda model: LGDiST.setup_anndata(model.adata.copy(), ["a"]),
        TypeError,
        r"layer=\['a'\] must be one name",
    ),
    "layers": (
        lambda model: LGDiST(model.adata, n_layers=10**12),
        MemoryError,
        "The model would take .*smaller n_hidden",
    ),
    "width": (
        lambda model: LGDiST(model.adata, n_hidden=4 * 10**9),
        MemoryError,
        "The model would take .*smaller n_hidden",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS)
def test_arguments_of_another_kind(trained, call, error, message):
    with pytest.raises(error, match=message):
        call(trained)


def test_no_gene_asked_for(trained):
    assert trained.get_region_expression(n_spots=5, gene_list=[], silent=True).shape == (150, 0)


def test_more_samples_than_fit_in_memory(trained):
    with pytest.raises(MemoryError, match=r"n_samples=3000000 .*GB.* smaller n_samples"):
        trained.get_completed_expression(n_samples=3_000_000, n_steps=2, silent=True)


class Double:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


SESSIONS = {
    "double precision": (Double, r"float64.*set_default_dtype\(torch\.float32\)"),
    "meta device": (lambda: torch.device("meta"), r"'meta'.*leave"),
    "autocast": (lambda: torch.autocast("cpu"), r"autocast is on.*precision="),
}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("session", "message"), SESSIONS.values(), ids=SESSIONS)
def test_state_of_pytorch(trained, model, small, session, message):
    for attempt in (
        lambda: small.fit(model),
        lambda: trained.get_completed_expression(silent=True),
        lambda: LGDiST(trained.adata, **small.OPTIONS),
    ):
        with pytest.raises(RuntimeError) as caught, session():
            attempt()
        assert ours(caught, message)


def test_inference_mode(trained, model, small):
    with pytest.raises(RuntimeError) as caught, torch.inference_mode():
        small.fit(model)
    assert ours(caught, r"inference_mode.*leave it")
    with torch.inference_mode():
        assert np.isfinite(trained.get_completed_expression(return_numpy=True, silent=True)).all()


def test_warnings_as_errors(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adata = small.tissue()
        model = small.build(adata)
        model.train_autoencoder(1, accelerator="cpu", enable_progress_bar=False)
        model.add_completed_layer(silent=True)


def test_copy_is_registered_apart(small):
    adata = small.tissue()
    other = adata.copy()
    LGDiST.setup_anndata(other, "counts")
    for unregistered in (adata, other.copy()):
        with pytest.raises(ValueError) as caught:
            LGDiST(unregistered)
        assert ours(caught, r"Register the very AnnData that you pass.*setup_anndata")


@pytest.mark.parametrize("part", ["indptr", "indices"])
def test_damaged_sparse_matrix(small, part):
    """Compiled code would read beyond it, and the process would end."""
    adata = small.tissue()
    counts = adata.layers["counts"].tocsr().copy()
    getattr(counts, part)[3] = 10**7
    adata.layers["counts"] = counts
    with pytest.raises(ValueError) as caught:
        LGDiST.setup_anndata(adata, "counts")
    assert ours(caught, r"layers\['counts'\] is damaged: its indices .*undamaged file")


def test_name_that_is_too_long(trained, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be written .*shorter"):
        trained.write_completed(tmp_path / f"{'a' * 245}.h5ad", silent=True)
    assert list(tmp_path.iterdir()) == []


def test_table_that_annotates_nothing(small):
    from spatialdata import SpatialData

    adata = small.tissue()
    with pytest.raises(ValueError) as caught:
        LGDiST.setup_spatialdata(SpatialData(tables={"table": adata}), layer="counts")
    assert ours(caught, r"annotates no shapes.*TableModel\.parse")


def test_options_that_there_are_not(trained):
    with pytest.raises(TypeError, match=r"no option 'denoise' \(options: 'n_samples'.*correct the name"):
        trained.add_completed_layer(denoise=True)


def test_counts_in_raw_are_named(small):
    adata = small.tissue()
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X.toarray())
    with pytest.raises(ValueError, match=r"adata.raw holds whole numbers: (.*)\.$") as caught:
        LGDiST.setup_anndata(adata)
    exec(str(caught.value).rpartition("whole numbers: ")[2].rstrip("."), {"adata": adata})
    LGDiST.setup_anndata(adata, layer="counts")
    adata.raw = adata.copy()
    with pytest.raises(ValueError, match="not whole numbers") as caught:
        LGDiST.setup_anndata(adata)
    assert "adata.raw" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("get_normalized_expression", r"get_completed_expression\(scale=\"rate\"\)"),
        ("differential_abundance", "differential_expression"),
    ],
)
def test_methods_of_other_models_name_ours(trained, name, instead):
    with pytest.raises(NotImplementedError, match=instead) as caught:
        getattr(trained, name)()
    ours(caught, name)
