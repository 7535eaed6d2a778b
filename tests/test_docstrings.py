"""Every public object says in its docstring what it takes and gives, in which shapes and units, when it fails, where it is
from, and how it is used.

The examples themselves are run by the ``conftest.py`` of the repository.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import re
import runpy
import textwrap
import warnings
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from numpydoc.docscrape import NumpyDocString

import lgdist_scvi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the documentation is not part of this installation", allow_module_level=True)

MODULES = ("", ".datasets", ".metrics", ".pl", ".pp", ".tl")
# What the documentation leaves out of a class: inherited members, and what scvi-tools alone calls.
LEFT_OUT = runpy.run_path(str(DOCS / "conf.py"))["_skip_member"]

ARRAY = re.compile(r"\b(ArrayLike|NDArray|Tensor|DataFrame|Series|spmatrix|sparray|cs[cr]_(matrix|array))\b")
AXES = re.compile(r"NDArray\[np\.object_\]")
NUMBER = re.compile(r"\bfloat\b")
DIMENSION = r"(n_\w+( [-+*/] (\d+|n_\w+))?|\d+( \+ n_\w+)?|height|width|\.\.\.)"
SHAPE = re.compile(rf"``\(({DIMENSION}, )*{DIMENSION},?\)``|same shape|the shape of")
UNITS = (
    r"\bcounts?\b",
    r"\blog1p\b",
    r"\bshares?\b",
    r"\bpixels?\b",
    r"\bmicromet",
    r"\bTrue (where|for)\b",
    r"\bunit\b",  # no unit, in any unit, in the unit of ...
    r"\b0 to 1\b",
    r"\b-1 to 1\b",
    r"\bbetween 0 and 1\b",
    r"\bbrightness\b",
    r"\bnumbers of\b",  # of rows, genes, levels
)
UNIT = re.compile("|".join(UNITS), re.IGNORECASE)
AS_ELSEWHERE = re.compile(r"As (?:in|for|`(?P<name>\w+)` of) :(?:meth|func):`~?(?P<where>[\w.]+)`")
CITATION = re.compile(r":cite:[pt]:`([^`]+)`")
SECTION_OF_METHOD = re.compile(r'"([^"]+)"')

# Where each thing that is not our own invention is from: keys of docs/references.bib.
SOURCES = {
    "LGDiST": {"cardenas2025lgdist"},
    "LGDiST.detect_expression": set(),
    "LGDiST.differential_expression": {"hu2010grouped", "ignatiadis2016ihw"},
    "LGDiST.evaluate_completion": {"cardenas2025lgdist", "cameron1996rsquared"},
    "LGDiST.get_completed_expression": {
        "cardenas2025lgdist",
        "lu2022dpmsolverpp",
        "song2021ddim",
        "townes2019glmpca",
    },
    "LGDiST.get_count_quantiles": {"greenwood1920inquiry"},
    "LGDiST.get_gene_correlation": {"kunsch1989jackknife"},
    "LGDiST.get_latent_representation": {"cardenas2025lgdist"},
    "LGDiST.get_region_expression": {"neufeld2024thinning"},
    "LGDiST.posterior_predictive_sample": set(),
    "LGDiST.sample_expression": {"papandreou2010gaussian"},
    "LGDiST.setup_anndata": {"palla2022squidpy"},
    "LGDiST.train": {"cardenas2025lgdist"},
    "LGDiST.train_autoencoder": {"cardenas2025lgdist", "townes2019glmpca"},
    "LGDiST.train_diffusion": {"cardenas2025lgdist", "nichol2021improved", "peebles2023dit"},
    "LGDiSTModule": {"cardenas2025lgdist", "nichol2021improved", "peebles2023dit"},
    "LGDiSTModule.expression_loss": {"cardenas2025lgdist"},
    "metrics.count_coverage": {"czado2009predictive"},
    "metrics.count_distribution": {"greenwood1920inquiry"},
    "metrics.deviance_explained": {"cameron1996rsquared"},
    "metrics.gene_pearson": {"pearson1895note"},
    "metrics.poisson_deviance": {"mccullagh1989generalized"},
    "pl.coverage": {"czado2009predictive"},
    "pl.gene_accuracy": {"cameron1996rsquared"},
    "pp.StainDescriptor": {"ruifrok2001deconvolution"},
    "pp.select_genes": {"cardenas2025lgdist", "moran1950notes"},
    "tl.audit": {"cameron1996rsquared", "czado2009predictive", "welch1947generalization"},
    "tl.domains": {
        "fraley2002model",
        "hubert1985comparing",
        "schwarz1978estimating",
        "traag2019leiden",
    },
}
# Errors of what a function calls that do not come to pass, and why.
NEVER = {
    ("LGDiST.train", "RuntimeError"): "it trains the autoencoder before the diffusion",
    ("datasets.example_tissue", "OSError"): "where there is no download a simulation stands in",
}


class Subject(NamedTuple):
    """A public object and what is known of it."""

    name: str
    what: Any
    call: FunctionType
    """The function whose signature counts: of a class its constructor, of a property its getter."""
    doc: NumpyDocString
    owner: type | None = None

    @property
    def is_class(self) -> bool:
        return isinstance(self.what, type)

    @property
    def is_property(self) -> bool:
        return isinstance(self.what, property)

    @property
    def arguments(self) -> dict[str, str]:
        """Names as they are documented, and annotations as they are written."""
        parameters = list(inspect.signature(self.call).parameters.values())
        if self.owner is not None:
            parameters = parameters[1:]
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        return {stars.get(p.kind, "") + p.name: str(p.annotation) for p in parameters}

    @property
    def result(self) -> str:
        return str(inspect.signature(self.call).return_annotation)

    @property
    def documented(self) -> list[tuple[list[str], str]]:
        """Groups of parameters that share a description, and the description."""
        return [(entry.name.split(", "), " ".join(entry.desc)) for entry in self.doc["Parameters"]]

    @property
    def returns(self) -> str:
        # The parser takes each line of prose for a type, and what is indented for its description.
        lines = [[f"{entry.name} : " * bool(entry.name) + entry.type, *entry.desc] for entry in self.doc["Returns"]]
        return " ".join(line for part in lines for line in part)


def subject(name: str, what: Any, owner: type | None = None, text: str | None = None) -> Subject:
    """Read a docstring, by default the object's own; what the parser warns of is an error."""
    call = inspect.unwrap(what.fget if isinstance(what, property) else getattr(what, "__func__", what))
    if isinstance(what, type):
        call, owner = what.__init__, what
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Subject(name, what, call, NumpyDocString(text or inspect.getdoc(what) or ""), owner)


def public() -> Iterator[tuple[str, Any, type | None]]:
    """Names, objects and owners of all that users may call."""
    for module in MODULES:
        home = importlib.import_module("lgdist_scvi" + module)
        for short in home.__all__:
            what, name = getattr(home, short), f"{module[1:]}.{short}" if module else short
            if not callable(what):
                continue
            yield name, what, None
            for member in dir(what) if isinstance(what, type) else ():
                found = inspect.getattr_static(what, member)
                function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
                ours = (getattr(function, "__module__", None) or "").startswith("lgdist_scvi")
                if ours and not member.startswith("_") and not LEFT_OUT(None, "class", member, found, False, None):
                    yield f"{name}.{member}", found, what


PUBLIC = {name: (what, owner) for name, what, owner in public()}


@pytest.fixture(params=PUBLIC)
def documented(request: pytest.FixtureRequest) -> Subject:
    return subject(request.param, *PUBLIC[request.param])


# The rules. Each lists what is wrong.


def wrong_summary(it: Subject) -> list[str]:
    text = " ".join(it.doc["Summary"])
    problems = [] if text else ["there is no summary"]
    if text and not text.endswith("."):
        problems.append("the summary does not end with a full stop")
    if re.search(r"[.!?] [A-Z]", text):
        problems.append("the summary is more than one sentence")
    return problems


def wrong_parameters(it: Subject) -> list[str]:
    expected = list(it.arguments)
    found = [name for names, _ in it.documented for name in names]
    problems = [] if expected == found else [f"the parameters are {expected}, those documented {found}"]
    problems += [f"{entry.name} has a type in the docstring" for entry in it.doc["Parameters"] if entry.type]
    for names, text in it.documented:
        if not text:
            problems.append(f"{', '.join(names)}: no description")
        elif reference := AS_ELSEWHERE.match(text):
            there = referenced(it, reference["where"])
            known = [name.lstrip("*") for name in there.arguments] if there else []
            wanted = [reference["name"]] if reference["name"] else [name.lstrip("*") for name in names]
            if absent := [name for name in wanted if name not in known]:
                problems.append(f"{reference['where']} has no parameter {', '.join(absent)}")
    return problems


def referenced(it: Subject, where: str) -> Subject | None:
    """What a description refers to: by its full name, or another one of the same class or module."""
    name = where.removeprefix("lgdist_scvi.")
    for candidate in (name, f"{it.name.rpartition('.')[0]}.{name}"):
        if candidate in PUBLIC:
            return subject(candidate, *PUBLIC[candidate])
    return None


def wrong_returns(it: Subject) -> list[str]:
    if it.is_class or it.is_property:
        return ["a Returns section"] if it.doc["Returns"] else []
    if typed := [entry.type for entry in it.doc["Returns"] if entry.desc]:
        return [f"the result has a type in the docstring: {typed}"]
    if it.result == "None":
        return ["a Returns section where nothing is returned"] if it.returns else []
    return [] if it.returns else ["no Returns section"]


def wrong_errors(it: Subject) -> list[str]:
    problems, named = [], set()
    for entry in it.doc["Raises"]:
        for name in entry.type.split(", "):
            error = getattr(builtins, name, None)
            if not (isinstance(error, type) and issubclass(error, BaseException)):
                problems.append(f"{name} is no exception")
            named.add(name)
        if not entry.desc:
            problems.append(f"{entry.type}: it is not said when")
    if absent := {name for name in raised(it.call, it.owner) - named if (it.name, name) not in NEVER}:
        problems.append(f"it can raise {', '.join(sorted(absent))}, which Raises does not name")
    return problems


def raised(function: FunctionType, owner: type | None) -> set[str]:
    """Exceptions that a function raises, or one of ours that it calls, directly or not."""
    found: set[str] = set()
    seen, todo = set(), [(function, owner)]
    while todo:
        current, home = todo.pop()
        if current not in seen:
            seen.add(current)
            errors, called = read(current, home)
            found |= errors
            todo += called
    return found


@functools.cache
def read(function: FunctionType, owner: type | None) -> tuple[set[str], list[tuple[FunctionType, type | None]]]:
    """Exceptions that the source of a function names after ``raise``, and the functions of ours that it calls."""
    errors: set[str] = set()
    called: list[tuple[FunctionType, type | None]] = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            errors.add(node.exc.func.id)
        if isinstance(node, ast.Call):
            target, home = resolved(node.func, function, owner)
            if isinstance(target, type):
                # A subclass of what others wrote is called through them.
                starts = [getattr(target, name, None) for name in ("__init__", "__post_init__", "forward")]
                called += [(start, target) for start in starts if is_ours(start)]
            elif is_ours(target):
                called.append((inspect.unwrap(target), home))
    return errors, called


def resolved(node: ast.expr, function: FunctionType, owner: type | None) -> tuple[Any, type | None]:
    """What a name in the source of a function stands for, as far as that can be told."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id), None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id in ("self", "cls") and owner is not None:
            return getattr(getattr(owner, node.attr, None), "__func__", getattr(owner, node.attr, None)), owner
        base = function.__globals__.get(node.value.id)
        if isinstance(base, type):
            return getattr(getattr(base, node.attr, None), "__func__", getattr(base, node.attr, None)), base
        return getattr(base, node.attr, None) if inspect.ismodule(base) else None, None
    return None, None


def is_ours(target: Any) -> bool:
    # What a dataclass generates has no source.
    written = isinstance(target, FunctionType) and target.__code__.co_filename.endswith(".py")
    return written and target.__module__.startswith(("lgdist_scvi", __name__))


def wrong_shapes(it: Subject) -> list[str]:
    return [f"{what}: no shape like ``(n_spots, n_genes)``" for what, _, text in arrays(it) if not SHAPE.search(text)]


def wrong_units(it: Subject) -> list[str]:
    numbers = [
        (what, kind, text) for what, kind, text in described(it) if NUMBER.search(kind) and not ARRAY.search(kind)
    ]
    told = [(what, text) for what, kind, text in (*arrays(it), *numbers) if not AXES.search(kind)]
    return [f"{what}: neither a unit nor what the values are" for what, text in told if not UNIT.search(text)]


def arrays(it: Subject) -> list[tuple[str, str, str]]:
    return [entry for entry in described(it) if ARRAY.search(entry[1])]


def described(it: Subject) -> list[tuple[str, str, str]]:
    """Names, annotations and descriptions of what goes in and comes out, but for what is described elsewhere."""
    kinds, whole = it.arguments, " ".join([*it.doc["Summary"], *it.doc["Extended Summary"]])
    entries = [(name, kinds.get(name, ""), text) for names, text in it.documented for name in names]
    if it.is_property or it.returns:
        entries.append(("result", it.result, whole if it.is_property else it.returns))
    return [entry for entry in entries if not AS_ELSEWHERE.match(entry[2])]


def wrong_source(it: Subject) -> list[str]:
    text = " ".join(it.doc["References"])
    cited = {key.strip() for keys in CITATION.findall(text) for key in keys.split(",")}
    problems = [f"docs/references.bib has no {key}" for key in sorted(cited - bibliography())]
    problems += [f"no citation of {key} under References" for key in sorted(SOURCES.get(it.name, set()) - cited)]
    if it.name not in SOURCES and (cited or text):
        problems.append("it has a source that the table of this test does not know")
    for title in SECTION_OF_METHOD.findall(text):
        if f"\n## {title}\n" not in (DOCS / "method.md").read_text(encoding="utf-8"):
            problems.append(f"docs/method.md has no section {title!r}")
    return problems


@functools.cache
def bibliography() -> set[str]:
    return set(re.findall(r"^@\w+\{([^,]+),$", (DOCS / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))


def wrong_examples(it: Subject) -> list[str]:
    lines = [line for line in it.doc["Examples"] if line.startswith(">>> ")]
    name = it.name.rpartition(".")[2]
    if not lines:
        return ["no example"]
    if "SKIP" in " ".join(lines):
        return ["an example that is not run"]
    calls = rf"\b{name}\b" if name != "forward" else r"\.forward\(|\.module\("
    return [] if any(re.search(calls, line) for line in lines) else [f"no example uses {name}"]


RULES = (
    wrong_summary,
    wrong_parameters,
    wrong_returns,
    wrong_errors,
    wrong_shapes,
    wrong_units,
    wrong_source,
    wrong_examples,
)


def test_docstring(documented: Subject):
    problems = {rule.__name__: rule(documented) for rule in RULES}
    assert not {rule: found for rule, found in problems.items() if found}, documented.name


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_described(module: str):
    what = importlib.import_module("lgdist_scvi" + module)
    assert not wrong_summary(Subject(module, what, test_modules_are_described, NumpyDocString(what.__doc__)))


def test_data_is_described_with_its_source():
    data = [name for name in lgdist_scvi.__all__ if isinstance(getattr(lgdist_scvi, name), dict)]
    assert data == ["PUBLISHED"]
    _, text = (DOCS / "api.md").read_text(encoding="utf-8").split(".. py:data:: PUBLISHED\n")
    assert "`cardenas2025lgdist`" in text.partition("```")[0]


def test_tables_name_public_objects_only():
    assert set(SOURCES) | {name for name, _ in NEVER} <= set(PUBLIC)


def test_shapes_are_written_in_one_way():
    """In the whole package, private docstrings included."""
    other = {}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tuples = re.findall(r"``\([^()`]*\)``", text)
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        other[path.name] = [found for found in tuples if not SHAPE.fullmatch(found)]
        other[path.name] += re.findall(r"\w+ x genes", " ".join(ast.get_docstring(node) or "" for node in nodes))
    assert not {name: found for name, found in other.items() if found}


# The rules themselves: each finds what is wrong with a docstring.

GOOD = """Multiply values.

Parameters
----------
values
    Values, ``(n_spots, n_genes)``, in counts.
factor, more
    Factors, no unit.
**rest
    Further options.

Returns
-------
The products, ``(n_spots, n_genes)``, in counts,
and nothing else.

Raises
------
ValueError
    If the factor is 0.

References
----------
:cite:p:`moran1950notes`; "The diffusion" of :doc:`/method`.

Examples
--------
>>> product(np.ones((2, 2)), 2)
"""


def refuse(factor: float) -> None:
    if not factor:
        raise ValueError(factor)


def product(values: ArrayLike, factor: float, more: float = 1.0, **rest: Any) -> NDArray[np.float64]:
    refuse(factor)
    return np.asarray(values) * factor * more


def silent(values: ArrayLike) -> None:
    """Do nothing.

    Returns
    -------
    Nothing.
    """


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SOURCES, "product", {"moran1950notes"})


def problems_of(text: str) -> dict[str, list[str]]:
    found = {rule.__name__: rule(subject("product", product, text=text)) for rule in RULES}
    return {rule: problems for rule, problems in found.items() if problems}


@pytest.mark.usefixtures("source")
def test_a_good_docstring_passes():
    assert problems_of(GOOD) == {}


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("old", "new", "rule", "problem"),
    [
        ("Multiply values.", "Multiply values", "wrong_summary", "full stop"),
        ("Multiply values.", "Multiply values. Then stop.", "wrong_summary", "more than one sentence"),
        ("factor, more\n", "factor\n", "wrong_parameters", "those documented ['values', 'factor', '**rest']"),
        ("factor, more\n", "more, factor\n", "wrong_parameters", "'more', 'factor'"),
        ("**rest\n", "rest\n", "wrong_parameters", "'rest'"),
        ("values\n", "values : array\n", "wrong_parameters", "has a type"),
        ("    Further options.\n", "", "wrong_parameters", "**rest: no description"),
        ("Further options.", "As in :func:`lgdist_scvi.pl.history`.", "wrong_parameters", "has no parameter rest"),
        ("Further options.", "As in :func:`lgdist_scvi.pl.nothing`.", "wrong_parameters", "has no parameter rest"),
        ("The products", "numpy.ndarray\n    The products", "wrong_returns", "has a type"),
        ("Returns\n-------\n", "Notes\n-----\n", "wrong_returns", "no Returns section"),
        ("Raises\n------\nValueError\n    If", "Notes\n-----\nIf", "wrong_errors", "it can raise ValueError"),
        ("ValueError\n", "TypeError\n", "wrong_errors", "it can raise ValueError"),
        ("ValueError\n", "ValueErr, ValueError\n", "wrong_errors", "no exception"),
        ("    If the factor is 0.\n", "", "wrong_errors", "not said when"),
        ("Values, ``(n_spots, n_genes)``,", "Values", "wrong_shapes", "values: no shape"),
        ("Values, ``(n_spots, n_genes)``,", "Values, ``(spots, genes)``,", "wrong_shapes", "values: no shape"),
        ("The products, ``(n_spots, n_genes)``,", "The products", "wrong_shapes", "result: no shape"),
        ("genes)``, in counts.", "genes)``.", "wrong_units", "values: neither"),
        ("Factors, no unit.", "Factors.", "wrong_units", "factor: neither"),
        ("in counts,\n", "all of them,\n", "wrong_units", "result: neither"),
        ("`moran1950notes`", "`moran1950`", "wrong_source", "references.bib has no moran1950"),
        ("`moran1950notes`", "`ho2020ddpm`", "wrong_source", "no citation of moran1950notes"),
        ('"The diffusion"', '"The confusion"', "wrong_source", "no section 'The confusion'"),
        (">>> product(np.ones((2, 2)), 2)\n", "None.\n", "wrong_examples", "no example"),
        ("2)\n", "2)  # doctest: +SKIP\n", "wrong_examples", "not run"),
        (">>> product", ">>> quotient", "wrong_examples", "no example uses product"),
    ],
)
def test_a_bad_docstring_fails(old: str, new: str, rule: str, problem: str):
    assert old in GOOD
    found = problems_of(GOOD.replace(old, new, 1))
    assert list(found) == [rule]
    assert problem in " ".join(found[rule])


def test_a_result_of_none_is_not_described():
    assert "nothing is returned" in " ".join(wrong_returns(subject("silent", silent)))


def test_a_source_belongs_into_the_table():
    assert "does not know" in " ".join(wrong_source(subject("quotient", product, text=GOOD)))
