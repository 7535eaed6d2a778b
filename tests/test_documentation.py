"""The documentation keeps to what is there: errors that it quotes, links, and the entry for the scverse listing."""

import csv
import json
import re
from pathlib import Path
from statistics import fmean

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from code_blocks import run_at_full_length
from PIL import Image

import lgdist_scvi

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "benchmarks").glob("*.md")])
# Made when the documentation is built.
MADE = {"docs/tutorials/index.md", "docs/changelog.md"}


def names_of(page):
    """Labels of a page, and the anchors of its headings as GitHub and MyST make them."""
    text = page.read_text(encoding="utf-8")
    headings, labels = (re.findall(pattern, text, flags=re.MULTILINE) for pattern in (r"^#+ (.+)$", r"^\((.+)\)=$"))
    return set(labels) | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.relative_to(ROOT).as_posix() in MADE:
            continue
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in names_of(target), f"{page.name}: {link} has no such heading"


def test_questions_quote_errors_that_there_are():
    quoted = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    with open(ROOT / "docs" / "errors.csv", encoding="utf-8", newline="") as file:
        messages = [row["message"] for row in csv.DictReader(file)]
    assert len(quoted) >= 10
    for fragment in quoted:
        assert any(fragment in message for message in messages), fragment


def test_listing_fits_the_package():
    listing = yaml.safe_load((ROOT / "docs" / "meta.yaml").read_text(encoding="utf-8"))
    wanted = {"name", "description", "documentation_home", "install", "license", "tags", "test_command"}
    # The version is taken from the package index; the address of the source is added at submission.
    assert wanted <= set(listing) and "version" not in listing
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lgdist_scvi.__version__ and citation["license"] == listing["license"]


@pytest.mark.full
@pytest.mark.parametrize(("page", "n_blocks"), [("README.md", 4), ("docs/command_line.md", 2)])
def test_blocks_run_at_full_length(page, n_blocks):
    """As a reader runs them; each page is also run block by block, with trainings that are cut short."""
    assert run_at_full_length(ROOT / page) == n_blocks


# What a new user wants to do, the page that the landing page names for it, and the call that does it there.
TASKS = {
    "complete a section": ("start.ipynb", "add_completed_layer("),
    "join sections": ("user_guide.md", "anndata.concat("),
    "region of a marker": ("tutorials/08_tests_and_evidence", "get_region_expression("),
    "test two regions": ("tutorials/08_tests_and_evidence", "differential_expression("),
    "find domains": ("tutorials/07_domains", "tl.domains("),
    "Visium HD folder": ("tutorials/10_bins", "from_visium_hd("),
    "Xenium": ("tutorials/09_cells", "drop_controls("),
    "image": ("tutorials/03_images_and_spatialdata", "image_embeddings("),
    "new section": ("tutorials/02_several_sections", "LGDiST.load("),
    "large file": ("tutorials/05_large_data", "write_completed("),
    "how far to trust": ("tutorials/04_how_far_to_trust", "tl.audit("),
    "cite": ("citation.md", "arXiv:2509.01864"),
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_one_click_away(task):
    page, call = TASKS[task]
    landing = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"\({re.escape(page)}[#)]|[<`]{re.escape(page)}[>`]", landing)
    source = ROOT / f"{page}.ipynb" if page.startswith("tutorials/") else ROOT / "docs" / page
    assert call in source.read_text(encoding="utf-8")


def test_the_output_on_the_landing_page_is_that_of_the_first_steps():
    cells = nbformat.read(ROOT / "docs" / "start.ipynb", as_version=4).cells
    (scores,) = (cell.outputs[0]["data"]["text/plain"] for cell in cells if "evaluate_completion" in cell.source)
    assert f"```text\n{scores}\n```" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def landing_picture():
    """What `docs/picture.py` has drawn, in numbers."""
    with Image.open(ROOT / "docs" / "picture.png") as picture:
        assert picture.width >= 1600
        return json.loads(picture.text["drawn"])


def test_the_picture_on_the_landing_page_agrees_with_the_benchmarks():
    drawn = landing_picture()
    landing = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"A section of human cortex \(Visium, (\d+)\)", landing)
    assert drawn["source"] == f"dlpfc_visium_{section}.h5ad"
    kept = json.loads((ROOT / "benchmarks" / "results" / "domains" / f"cortex_{section}.json").read_text())
    scores = [without_vote for without_vote, _ in kept["lgdist"]["domains"]["mixture"].values()]
    assert drawn["agreement"] == pytest.approx(fmean(scores), abs=0.03)
    # Totals of the default are promised within 3%; single layers of a rare gene vary more.
    for gene, measured in drawn["measured"].items():
        highest = max(measured, key=measured.get)
        assert drawn["completed"][gene][highest] == pytest.approx(measured[highest], rel=0.1)
        assert all(0 < std < 1 for std in drawn["uncertainty"][gene].values())


def test_the_picture_on_the_landing_page_shows_the_data(real_data):
    drawn = landing_picture()
    section = lgdist_scvi.datasets.example_tissue("cortex", folder=real_data)
    for gene, measured in drawn["measured"].items():
        counts = section.layers["counts"][:, section.var_names.get_loc(gene)].toarray().ravel()
        shares = 1e4 * counts / np.asarray(section.layers["counts"].sum(axis=1)).ravel()
        assert measured == pytest.approx(
            pd.Series(shares).groupby(section.obs["layer"].to_numpy()).mean().to_dict(), rel=1e-4
        )


def test_the_size_on_the_landing_page_was_measured():
    largest = json.loads((ROOT / "benchmarks" / "results" / "speed" / "large.json").read_text())["runs"][-1]["n_spots"]
    assert f"a few hundred to {largest:,} spots" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
