"""How Sphinx builds the documentation.

``make docs`` builds without a network and without warnings, those for unresolved names of ours included. With
``LGDIST_DOCS_ONLINE`` set, links into the documentation of other projects are resolved as well.
"""

import base64
import importlib.metadata
import os
import shutil
from datetime import datetime
from pathlib import Path

import nbformat
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

_HERE = Path(__file__).parent
_ONLINE = bool(os.environ.get("LGDIST_DOCS_ONLINE"))

project = "lgdist-scvi"
author = "the lgdist-scvi developers"
copyright = f"2026, {author}"
version = release = importlib.metadata.version(project)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = project
html_math_renderer = "mathml"  # browsers draw it themselves: no script from the network
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"navbar_persistent": []}  # the sidebar has a search box

# The notebooks are stored with their outputs; building the documentation does not train models.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
always_use_bars_union = True
typehints_defaults = "braces-after"
typehints_document_rtype_none = False
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

nitpicky = True
nitpick_ignore_regex = [("py:.*", r"lgdist_scvi\.(\w+\.)*_.*")]  # private, in the signatures of LGDiSTModule
if _ONLINE:
    extensions.append("sphinx.ext.intersphinx")
else:
    nitpick_ignore_regex.append(("py:.*", r"(?!lgdist_scvi).*"))  # names of other projects cannot be resolved
intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
    "matplotlib": ("https://matplotlib.org/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "python": ("https://docs.python.org/3", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
    "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
    "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/main/", None),
}

# Of what the classes inherit from scvi-tools and PyTorch, only these belong to our users' vocabulary.
_INHERITED = {"save", "load", "history", "is_trained"}
# Ours, but called by scvi-tools only, or names of other models' methods that say which to use here.
_INTERNAL = {"get_normalized_function_name", "register_manager", "get_normalized_expression", "differential_abundance"}


def _skip_member(app, what, name, obj, skip, options) -> bool | None:
    """Leave out what our classes inherit, which scvi-tools and PyTorch document, and what is not for users."""
    function = obj.fget if isinstance(obj, property) else getattr(obj, "__func__", obj)
    home = getattr(function, "__module__", None) or ""
    foreign = not home.startswith("lgdist_scvi") and name not in _INHERITED
    return True if foreign or name in _INTERNAL else None


_PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def _duration(cells: list[nbformat.NotebookNode]) -> str:
    """How long the stored run took, from the times that Jupyter keeps with each cell."""
    times = [time for cell in cells for time in cell.metadata.get("execution", {}).values()]
    first, last = (datetime.fromisoformat(time) for time in (min(times), max(times)))
    minutes = max(1, round((last - first).total_seconds() / 60))
    return f"Took {minutes} minute{'s' if minutes > 1 else ''} on two cores, which other programs may have shared."


def _copy_tutorials() -> None:
    """Copy the notebooks into this folder, where Sphinx can see them, and list them on a page with a picture of each."""
    target = _HERE / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    page, names = ["# Tutorials", ""], []
    for notebook in sorted(_HERE.parent.glob("tutorials/*.ipynb")):
        shutil.copy(notebook, target)
        names.append(notebook.stem)
        cells = nbformat.read(notebook, as_version=4).cells
        title, _, text = cells[0].source.partition("\n")
        page += [
            f"## [{title.lstrip('# ')}]({notebook.stem}.ipynb)",
            "",
            text.strip().split("\n\n")[0],
            "",
            _duration(cells),
            "",
        ]
        outputs = (output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
        pictures = [(data[kind], suffix) for data in outputs for kind, suffix in _PICTURES.items() if kind in data]
        if pictures:
            # The largest shows most.
            content, suffix = max(pictures, key=lambda picture: len(picture[0]))
            (target / f"{notebook.stem}.{suffix}").write_bytes(base64.b64decode(content))
            page += [
                f"```{{image}} {notebook.stem}.{suffix}",
                f":alt: A figure of this tutorial, {title.lstrip('# ')}",
                ":class: preview",
                "```",
                "",
            ]
    page += ["```{toctree}", ":hidden:", "", *names, "```", ""]
    (target / "index.md").write_text("\n".join(page), encoding="utf-8")


def _prose(self, section: str) -> list[str]:
    """Render a Returns section as one description; by itself napoleon takes its lines for types."""
    lines = self._strip_empty(self._dedent(self._consume_to_next_section()))
    # The mark of sphinx-autodoc-typehints for a section without a type.
    return [*self._format_block(":returns: ", lines[lines[:1] == [":"] :]), ""]


def _math(node, display: str) -> str:
    # A tilde is a relation, with space around it.
    return convert(node.astext(), display=display).replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")


def _inline_math(self, node) -> None:
    self.body.append(_math(node, "inline"))
    raise SkipNode


def _display_math(self, node) -> None:
    self.body.append(f'<div class="formula">{_math(node, "block")}</div>')
    raise SkipNode


def setup(app) -> None:
    from sphinx.ext.napoleon import NumpyDocstring

    # Our types stand in the annotations.
    NumpyDocstring._parse_returns_section = _prose
    _copy_tutorials()
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.connect("autodoc-skip-member", _skip_member)
