"""A training shows what is ours, and nothing that the packages below say of themselves."""

import logging
import sys
import warnings

import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi._quiet import quiet


@pytest.fixture
def loud():
    """The loggers of the stack as they are in a fresh session."""
    names = ("lightning.pytorch", "scvi")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_setup_training_and_loading_print_nothing_of_the_stack(small, tmp_path, capfd, caplog, loud):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adata = small.tissue(n_libraries=2)
        LGDiST.setup_anndata(adata, layer="counts", library_key="library_id", image_key="X_image")
        model = small.fit(LGDiST(adata, **small.OPTIONS))
        model.save(tmp_path / "model")
        model = LGDiST.load(tmp_path / "model", adata=adata)
        model.get_latent_representation()
        model.write_completed(tmp_path / "a.zarr", **small.READ)
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""
    assert [record.getMessage() for record in caplog.records if record.levelno < logging.WARNING] == []
    assert [
        str(warning.message) for warning in caught if issubclass(warning.category, UserWarning | FutureWarning)
    ] == []
    assert logging.getLogger("lightning.pytorch").level == logging.INFO


def test_what_a_user_may_act_on_is_shown(capsys, caplog, loud):
    with pytest.warns(UserWarning, match="do not base claims") as caught, quiet():
        warnings.warn("do not base claims on this", UserWarning, stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        logging.getLogger("lightning.pytorch").info("an advertisement")
        logging.getLogger("lightning.pytorch").warning("the disk is full")
        print("ours", file=sys.stderr)
    assert len(caught) == 1
    assert [record.getMessage() for record in caplog.records] == ["the disk is full"]
    assert capsys.readouterr().err == "ours\n"


def test_quieter_loggers_stay_quieter(loud):
    logging.getLogger("scvi").setLevel(logging.ERROR)
    with quiet():
        assert logging.getLogger("scvi").level == logging.ERROR
    assert logging.getLogger("scvi").level == logging.ERROR
