"""What all tests of plots share."""

import pytest
from matplotlib import pyplot as plt
from PIL import Image


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def saves(tmp_path):
    """Whether a function draws the same into a file: at 300 dots per inch, and says so if there is no folder."""

    def check(draw, *given, **options):
        draw(*given, save=tmp_path / "figure.png", **options)
        with Image.open(tmp_path / "figure.png") as page:
            assert page.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert len(page.getcolors(page.width * page.height)) > 10
        draw(*given, save=str(tmp_path / "figure.pdf"), **options)
        assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
        with pytest.raises(
            FileNotFoundError, match="save='.*figure.png' names the folder .*nowhere, which does not exist"
        ):
            draw(*given, save=tmp_path / "nowhere" / "figure.png", **options)

    return check
