"""A training shows what is ours, and nothing that the packages below say of themselves."""

import logging
import sys
import warnings

import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi._quiet import quiet


class Kept(logging.Handler):
    """Keeps what the loggers of the stack say, whether they pass it on or not."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append((record.levelno, record.getMessage()))


@pytest.fixture
def said():
    """Messages of the loggers of the stack, which are as in a fresh session."""
    loggers, kept = [logging.getLogger(name) for name in ("lightning.pytorch", "scvi")], Kept()
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(kept)
    yield kept.messages
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeHandler(kept)


def test_setup_training_and_loading_print_nothing_of_the_stack(small, tmp_path, capfd, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adata = small.tissue(n_libraries=2)
        LGDiST.setup_anndata(adata, layer="counts", library_key="library_id", image_key="X_image")
        model = small.fit(LGDiST(adata, **small.OPTIONS))
        model.save(tmp_path / "model")
        model = LGDiST.load(tmp_path / "model", adata=adata)
        model.get_latent_representation(silent=True)
        model.write_completed(tmp_path / "a.zarr", **small.READ)
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""
    assert said == []
    assert [
        str(warning.message) for warning in caught if issubclass(warning.category, UserWarning | FutureWarning)
    ] == []
    assert logging.getLogger("lightning.pytorch").level == logging.INFO


def test_what_a_user_may_act_on_is_shown(capsys, said):
    with pytest.warns(UserWarning, match="do not base claims") as caught, quiet():
        warnings.warn("do not base claims on this", UserWarning, stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        logging.getLogger("lightning.pytorch").info("an advertisement")
        logging.getLogger("lightning.pytorch").warning("the disk is full")
        print("ours", file=sys.stderr)
    assert len(caught) == 1
    assert said == [(logging.WARNING, "the disk is full")]
    assert capsys.readouterr().err.endswith("ours\n")


def test_quieter_loggers_stay_quieter(said):
    logging.getLogger("scvi").setLevel(logging.ERROR)
    with quiet():
        assert logging.getLogger("scvi").level == logging.ERROR
    assert logging.getLogger("scvi").level == logging.ERROR
