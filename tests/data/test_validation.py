"""Every bad input is refused by a message that names the culprit and the remedy."""

import warnings
from datetime import date

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import rich
from scipy import sparse
from scvi.data.fields import CategoricalObsField

from lgdist_scvi.data._genes import CountsField, validate_genes
from lgdist_scvi.data._validation import validate_setup

DEFAULTS = {
    "layer": None,
    "spatial_key": "spatial",
    "library_key": None,
    "batch_key": None,
    "image_key": None,
    "observed_layer": None,
    "size_factor_key": None,
    "target_genes_key": None,
    "n_neighbors": 6,
}
EVERYTHING = {
    "layer": "counts",
    "library_key": "lib",
    "batch_key": "chip",
    "image_key": "image",
    "observed_layer": "observed",
    "size_factor_key": "depth",
    "target_genes_key": "target",
}


def tissue(n=120, n_genes=12):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (n, n_genes)).astype(np.float32)
    counts[:, 0] += 1
    observed = rng.random((n, n_genes)) < 0.8
    observed[:, 0] = True
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"lib": pd.Categorical(["a", "b"] * (n // 2)), "chip": ["u"] * n, "depth": rng.uniform(1e3, 1e4, n)},
            index=[f"spot{i}" for i in range(n)],
        ),
        var=pd.DataFrame({"target": [True, False] * (n_genes // 2)}, index=[f"gene{j}" for j in range(n_genes)]),
        obsm={"spatial": rng.uniform(0, 100, (n, 2)), "image": rng.normal(size=(n, 3))},
    )
    adata.layers["counts"] = counts.copy()
    adata.layers["observed"] = observed
    return adata


def check(adata, **kwargs):
    validate_setup(adata, **(DEFAULTS | kwargs))


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def no_check(adata):
    return adata


FORMATS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}


@pytest.mark.parametrize("to_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint16", "uint8"])
def test_good_counts_of_every_type(dtype, to_format):
    adata = tissue()
    adata.layers["counts"] = to_format(adata.layers["counts"].astype(dtype))
    adata.X = adata.layers["counts"].copy()
    check(adata)
    check(adata, **EVERYTHING)
    assert adata.layers["counts"].dtype == dtype


@pytest.mark.parametrize("to_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", ["bool", "float32", "int8"])
@pytest.mark.parametrize("counts_format", FORMATS.values(), ids=FORMATS)
def test_good_masks_of_every_type(dtype, to_format, counts_format):
    adata = tissue()
    hidden = ~adata.layers["observed"]
    adata.layers["counts"][hidden] = np.nan
    adata.layers["counts"] = counts_format(adata.layers["counts"])
    adata.layers["observed"] = to_format(adata.layers["observed"].astype(dtype))
    check(adata, layer="counts", observed_layer="observed")


@pytest.mark.parametrize("value", [np.nan, np.inf, -3, 0.5, 1e30])
def test_hidden_entries_are_never_read(value):
    adata = tissue()
    adata.layers["counts"][~adata.layers["observed"]] = value
    check(adata, layer="counts", observed_layer="observed")


def test_whole_spots_and_genes_may_be_hidden():
    adata = tissue()
    adata.layers["observed"][7] = False
    adata.layers["observed"][:, 5] = False
    adata.layers["counts"][7] = 0
    adata.layers["counts"][:, 5] = 0
    check(adata, layer="counts", observed_layer="observed")


def test_empty_spot_with_a_known_depth():
    adata = tissue()
    adata.X[7] = 0
    check(adata, size_factor_key="depth")


def test_shared_positions_of_libraries_need_only_the_key():
    adata = tissue()
    adata.obsm["spatial"][1::2] = adata.obsm["spatial"][::2]
    check(adata, library_key="lib")


def test_3d_positions_and_frames():
    adata = tissue()
    adata.obsm["spatial"] = pd.DataFrame(np.random.default_rng(0).normal(size=(120, 3)), index=adata.obs_names)
    adata.obsm["image"] = pd.DataFrame(adata.obsm["image"], index=adata.obs_names, columns=list("abc"))
    check(adata, image_key="image")


def test_new_data_may_be_small_and_lack_counts_of_genes():
    adata = tissue(20)[:5].copy()
    adata.X[:, 3] = 0
    check(adata, query=True)
    del adata.var["target"]
    check(adata, query=True, target_genes_key="target")


def set_x(value):
    def change(adata):
        adata.X[3, 2] = value
        adata.X[5, 1] = value
        return adata

    return change


def setting(attribute, key, value):
    def change(adata):
        getattr(adata, attribute)[key] = value(adata) if callable(value) else value
        return adata

    return change


def both(*changes):
    def change(adata):
        for one in changes:
            adata = one(adata)
        return adata

    return change


def with_entry(attribute, key, place, value):
    def change(adata):
        stored = getattr(adata, attribute)[key]
        stored = (
            stored.to_numpy().astype(object if value is None else stored.dtype) if hasattr(stored, "iloc") else stored
        )
        stored[place] = value
        getattr(adata, attribute)[key] = stored
        return adata

    return change


def renamed(axis):
    def change(adata):
        names = list(getattr(adata, f"{axis}_names"))
        names[3] = names[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(adata, f"{axis}_names", names)
        return adata

    return change


def zeroed(rows, cols):
    def change(adata):
        adata.X[rows, cols] = 0
        return adata

    return change


def share_positions(n):
    def change(adata):
        adata.obsm["spatial"][1 : 2 * n : 2] = adata.obsm["spatial"][0 : 2 * n : 2]
        return adata

    return change


def as_array(adata):
    adata.X = sparse.csr_array(adata.X)
    return adata


def observed_as(value):
    return setting("layers", "observed", value)


ALL = slice(None)
CASES = {
    "not AnnData": (lambda a: a.to_df(), {}, TypeError, ["DataFrame", "AnnData"]),
    "view": (lambda a: a[:110], {}, ValueError, ["view", "adata.copy()"]),
    "no spots": (lambda a: a[:0].copy(), {}, ValueError, ["(0, 12)", "at least one spot"]),
    "obs_names": (renamed("obs"), {}, ValueError, ["'spot1'", "obs_names_make_unique"]),
    "var_names": (renamed("var"), {}, ValueError, ["'gene1'", "var_names_make_unique"]),
    "csr_array": (as_array, {}, TypeError, ["csr_array", "adata.X = scipy.sparse.csr_matrix(adata.X)"]),
    "csc_array layer": (
        setting("layers", "counts", lambda a: sparse.csc_array(a.X)),
        {"layer": "counts"},
        TypeError,
        ["csc_array", "scipy.sparse.csr_matrix(adata.layers['counts'])"],
    ),
    "csr_array mask": (
        observed_as(lambda a: sparse.csr_array(a.layers["observed"])),
        {"observed_layer": "observed"},
        TypeError,
        ["layers['observed']", "scipy.sparse.csr_matrix"],
    ),
    "complex": (
        setting("layers", "counts", lambda a: a.X.astype(complex)),
        {"layer": "counts"},
        TypeError,
        ["layers['counts']", "complex", "astype"],
    ),
    "layer": (no_check, {"layer": "raw"}, KeyError, ["layers['raw']", "'counts'", "layer=..."]),
    "n_neighbors": (no_check, {"n_neighbors": 0}, ValueError, ["n_neighbors=0", "at least 1"]),
    "NaN": (set_x(np.nan), {}, ValueError, ["2 observed", "NaN", "'spot3'", "'gene2'", "observed_layer"]),
    "inf": (set_x(np.inf), {}, ValueError, ["infinite", "'spot5'", "'gene1'", "layer=..."]),
    "negative": (set_x(-2), {}, ValueError, ["negative", "'spot3'", "'gene2': -2", "raw counts"]),
    "fractions": (set_x(0.5), {}, ValueError, ["not whole numbers", "'spot3'", "'gene2': 0.5", "layer=..."]),
    "NaN in observed": (
        with_entry("layers", "counts", (4, 0), np.nan),
        {"layer": "counts", "observed_layer": "observed"},
        ValueError,
        ["layers['counts']", "'spot4'", "'gene0'"],
    ),
    "no count": (zeroed(ALL, ALL), {}, ValueError, ["adata.X", "no count in any observed entry", "layer=..."]),
    "no observed count": (
        setting("layers", "counts", lambda a: np.where(a.layers["observed"], 0, a.X)),
        {"layer": "counts", "observed_layer": "observed", "size_factor_key": "depth"},
        ValueError,
        ["layers['counts']", "no count in any observed entry"],
    ),
    "no count in a library": (
        zeroed(slice(1, None, 2), ALL),
        {"library_key": "lib"},
        ValueError,
        ["no count in any observed spot of the libraries 'b'", "obs['lib']", "drop their spots", "layer=..."],
    ),
    "no positions": (no_check, {"spatial_key": "xy"}, KeyError, ["obsm['xy']", "'spatial'", "spatial_key="]),
    "positions 1-D": (
        setting("obsm", "spatial", lambda a: a.obsm["spatial"][:, :1]),
        {},
        ValueError,
        ["(120, 1)", "(120, 2)"],
    ),
    "positions NaN": (
        with_entry("obsm", "spatial", (4, 1), np.nan),
        {},
        ValueError,
        ["1 spot ('spot4')", "np.isfinite(adata.obsm['spatial'])"],
    ),
    "positions inf": (with_entry("obsm", "spatial", (4, 1), np.inf), {}, ValueError, ["'spot4'", "infinite"]),
    "positions text": (
        setting("obsm", "spatial", lambda a: a.obsm["spatial"].astype(str)),
        {},
        TypeError,
        ["obsm['spatial']", "numeric"],
    ),
    "no library": (no_check, {"library_key": "slide"}, KeyError, ["obs['slide']", "'lib'", "library_key="]),
    "library NaN": (
        with_entry("obs", "lib", 6, None),
        {"library_key": "lib"},
        ValueError,
        ["obs['lib']", "'spot6'", "notna()"],
    ),
    "no batch": (no_check, {"batch_key": "plate"}, KeyError, ["obs['plate']", "batch_key="]),
    "batch NaN": (with_entry("obs", "chip", 6, None), {"batch_key": "chip"}, ValueError, ["obs['chip']", "'spot6'"]),
    "library of numbers and text": (
        setting("obs", "lib", lambda a: np.array([1, "b"] * 60, dtype=object)),
        {"library_key": "lib"},
        TypeError,
        ["obs['lib'] (library_key)", "int (1), str ('b')", "adata.obs['lib'] = adata.obs['lib'].map(str)"],
    ),
    "batch that is infinite once": (
        setting("obs", "chip", lambda a: np.array([np.inf] + ["u"] * 119, dtype=object)),
        {"batch_key": "chip"},
        TypeError,
        ["obs['chip'] (batch_key)", "float (inf), str ('u')", ".map(str)"],
    ),
    "library of lists": (
        setting("obs", "lib", lambda a: pd.Series([["a"]] * 120, index=a.obs_names)),
        {"library_key": "lib"},
        TypeError,
        ["obs['lib']", "list (['a'])", ".map(str)"],
    ),
    "sections overlay": (
        share_positions(60),
        {},
        ValueError,
        ["120 spots", "'spot0', 'spot1'", "Pass library_key=..."],
    ),
    "a column tells sections apart": (
        both(share_positions(1), setting("obs", "Sample_ID", lambda a: ["u", "v"] * 60)),
        {},
        ValueError,
        ["'spot0', 'spot1'", "library_key='Sample_ID'"],
    ),
    "tiny positions": (
        setting("obsm", "spatial", lambda a: a.obsm["spatial"] * 1e-200),
        {},
        ValueError,
        ["obsm['spatial']", "e-199 apart at most", "unit such as micrometres"],
    ),
    "huge positions": (
        setting("obsm", "spatial", lambda a: a.obsm["spatial"] * 1e200),
        {},
        ValueError,
        ["e+201 apart"],
    ),
    "one position": (
        setting("obsm", "spatial", lambda a: a.obsm["spatial"] * (a.obs[["lib"]] == "a").to_numpy()),
        {"library_key": "lib"},
        ValueError,
        ["obsm['spatial'] has positions of the library 'b' that are 0 apart"],
    ),
    "small library": (
        setting("obs", "lib", lambda a: ["a"] * 114 + ["b"] * 6),
        {"library_key": "lib"},
        ValueError,
        ["'b (6 spots)'", "smaller n_neighbors", "7 spots"],
    ),
    "few spots": (lambda a: a[:6].copy(), {}, ValueError, ["6 spots", "smaller n_neighbors"]),
    "no mask": (no_check, {"observed_layer": "seen"}, KeyError, ["layers['seen']", "observed_layer="]),
    "mask not boolean": (
        observed_as(lambda a: a.X + 1),
        {"observed_layer": "observed"},
        ValueError,
        ["layers['observed']", "neither 0 nor 1", "True where the entry was observed"],
    ),
    "sparse mask not boolean": (
        observed_as(lambda a: sparse.csr_matrix(a.X * 0.5)),
        {"observed_layer": "observed"},
        ValueError,
        ["neither 0 nor 1"],
    ),
    "mask with NaN": (
        observed_as(lambda a: np.where(a.X > 1, np.nan, 1)),
        {"observed_layer": "observed"},
        ValueError,
        ["neither 0 nor 1"],
    ),
    "mask False": (
        observed_as(lambda a: np.zeros(a.shape, dtype=bool)),
        {"observed_layer": "observed"},
        ValueError,
        ["layers['observed'] (observed_layer) is False everywhere", "True where the entry was observed"],
    ),
    "mask of the counts": (
        both(setting("layers", "counts", lambda a: (a.X > 1).astype(int))),
        {"layer": "counts", "observed_layer": "counts"},
        ValueError,
        ["layers['counts'] (observed_layer) equals the counts", "zeros included"],
    ),
    "masked counts": (
        setting("layers", "counts", lambda a: np.ma.masked_array(a.X, ~a.layers["observed"])),
        {"layer": "counts"},
        TypeError,
        ["layers['counts'] is a masked array", "adata.layers['counts'].data", "observed_layer=..."],
    ),
    "masked mask": (
        observed_as(lambda a: np.ma.masked_array(a.layers["observed"], a.X > 2)),
        {"observed_layer": "observed"},
        TypeError,
        ["layers['observed'] is a masked array"],
    ),
    "masked positions": (
        setting("obsm", "spatial", lambda a: np.ma.masked_array(a.obsm["spatial"], a.obsm["spatial"] > 90)),
        {},
        TypeError,
        ["obsm['spatial'] (positions) is a masked array", ".filled(numpy.nan)"],
    ),
    "no depth": (no_check, {"size_factor_key": "sf"}, KeyError, ["obs['sf']", "size_factor_key="]),
    "depth NaN": (with_entry("obs", "depth", 2, np.nan), {"size_factor_key": "depth"}, ValueError, ["'spot2'", "NaN"]),
    "depth zero": (
        with_entry("obs", "depth", 2, 0),
        {"size_factor_key": "depth"},
        ValueError,
        ["'spot2'", "less than the counts of the spot", "whole transcriptome"],
    ),
    "depth negative": (
        both(zeroed(2, ALL), with_entry("obs", "depth", 2, -1)),
        {"size_factor_key": "depth"},
        ValueError,
        ["'spot2'", "negative", "whole transcriptome"],
    ),
    "depth inf": (
        with_entry("obs", "depth", 2, np.inf),
        {"size_factor_key": "depth"},
        ValueError,
        ["'spot2'", "finite"],
    ),
    "relative depth": (
        setting("obs", "depth", lambda a: a.obs["depth"] / a.obs["depth"].mean()),
        {"size_factor_key": "depth"},
        ValueError,
        ["'spot0'", "less than the counts of the spot", "not a relative size factor"],
    ),
    "depth beyond reason": (
        with_entry("obs", "depth", 2, 1e12),
        {"size_factor_key": "depth"},
        ValueError,
        ["1 spot ('spot2')", "too large for a depth"],
    ),
    "count beyond reason": (set_x(1e12), {}, ValueError, ["too large for counts", "'spot3'", "layer=..."]),
    "depth text": (no_check, {"size_factor_key": "chip"}, TypeError, ["obs['chip']", "number"]),
    "no image": (no_check, {"image_key": "vit"}, KeyError, ["obsm['vit']", "'image'", "image_key="]),
    "image NaN": (
        with_entry("obsm", "image", (9, 2), np.nan),
        {"image_key": "image"},
        ValueError,
        ["'spot9'", "NaN", "the whole row"],
    ),
    "image all NaN": (
        setting("obsm", "image", lambda a: np.full((120, 3), np.nan)),
        {"image_key": "image"},
        ValueError,
        ["no spot has an image", "image_key=..."],
    ),
    "image inf": (with_entry("obsm", "image", (9, 2), np.inf), {"image_key": "image"}, ValueError, ["'spot9'"]),
    "image 3-D": (
        setting("obsm", "image", lambda a: np.zeros((120, 2, 2))),
        {"image_key": "image"},
        ValueError,
        ["(120, 2, 2)", "(120, n_features)"],
    ),
    "image without columns": (
        setting("obsm", "image", lambda a: np.zeros((120, 0))),
        {"image_key": "image"},
        ValueError,
        ["(120, 0)", "at least one column"],
    ),
    "no targets": (no_check, {"target_genes_key": "hsag"}, KeyError, ["var['hsag']", "select_genes"]),
    "targets not boolean": (
        setting("var", "target", 1.0),
        {"target_genes_key": "target"},
        ValueError,
        ["var['target']", "float64", "boolean"],
    ),
    "no target": (setting("var", "target", False), {"target_genes_key": "target"}, ValueError, ["at least one"]),
}


@pytest.mark.parametrize(("change", "kwargs", "error", "parts"), CASES.values(), ids=CASES)
def test_bad_input(change, kwargs, error, parts):
    adata = change(tissue())
    with pytest.raises(error) as caught:
        check(adata, **kwargs)
    message = str(caught.value.args[0])
    for part in parts:
        assert part in message


SURROUNDED = ["completed from their surroundings", "filter_cells(adata, min_counts=1)"]
PANEL = ["whole transcriptome as size_factor_key"]
RARE = ["close to zero", "filter_genes(adata, min_counts=1)", "observed_layer"]
EMPTY = {
    "spots": (zeroed([8, 9], ALL), {}, ["adata.X", "2 spots ('spot8', 'spot9')", *SURROUNDED, *PANEL]),
    "observed spot": (zeroed(8, ALL), {"observed_layer": "observed"}, ["1 spot ('spot8')", *SURROUNDED, *PANEL]),
    "spot of depth 0": (
        both(zeroed([8, 9], ALL), with_entry("obs", "depth", 9, 0)),
        {"size_factor_key": "depth"},
        ["1 spot ('spot9')", *SURROUNDED],
    ),
    "genes": (zeroed(ALL, [2, 6]), {}, ["adata.X", "2 genes ('gene2', 'gene6')", *RARE]),
    "observed gene": (zeroed(ALL, 6), {"observed_layer": "observed"}, ["1 gene ('gene6')", *RARE]),
    "both": (
        both(zeroed([8, 9], ALL), zeroed(ALL, [2, 6])),
        {"library_key": "lib"},
        ["2 spots ('spot8', 'spot9')", "2 genes ('gene2', 'gene6')", *SURROUNDED, *PANEL, *RARE],
    ),
}


def test_a_mask_that_hides_all_zeros_warns():
    adata = tissue()
    adata.layers["observed"] = adata.X > 0
    with pytest.warns(UserWarning, match="only where there is a count, and hides all zeros.*leave out observed_layer"):
        check(adata, observed_layer="observed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(adata, observed_layer="observed", query=True)
        adata.layers["observed"][0] = True
        check(adata, observed_layer="observed")
        # Of deep data all may be counts.
        adata.X += 1
        adata.layers["observed"][:] = True
        check(adata, observed_layer="observed")


@pytest.mark.parametrize("to_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("change", "kwargs", "parts"), EMPTY.values(), ids=EMPTY)
def test_spots_and_genes_without_a_count_warn_once(change, kwargs, parts, to_format):
    adata = change(tissue())
    adata.X = to_format(adata.X)
    with pytest.warns(UserWarning) as caught:
        check(adata, **kwargs)
    assert len(caught) == 1
    assert all(part in str(caught[0].message) for part in parts), caught[0].message
    # Advice that was followed already is not repeated.
    assert "size_factor_key" not in kwargs or PANEL[0] not in str(caught[0].message)


def test_an_empty_spot_of_new_data_warns_and_may_not_be_alone():
    adata = zeroed(8, ALL)(tissue())
    with pytest.warns(UserWarning, match=r"no count for 1 spot \('spot8'\)"):
        check(adata, query=True)
    with pytest.raises(ValueError, match="no count in any observed spot; name the layer"):
        check(adata[8:9].copy(), query=True)


NAMES = {
    "text": ["a", "b"],
    "whole numbers": [1, 2],
    "numbers of two types": [1, 2.5],
    "booleans and numbers": [True, 3],
    "infinite numbers": [1.0, np.inf],
    "pairs": [("a", 1), ("b", 1)],
    "days": [date(2020, 1, 1), date(2021, 1, 1)],
    "text and numbers": ["a", 1],
    "text and infinity": ["a", np.inf],
    "text and booleans": ["a", True],
    "text and bytes": ["a", b"b"],
    "pairs of two types": [("a", 1), ("b", "c"), ("a", "c")],
    "complex numbers": [1j, 2j],
}


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_are_refused_just_where_scvi_tools_cannot_take_them(names, categorical):
    adata = tissue()
    column = pd.Series(index=adata.obs_names, dtype=object)
    column[:] = [names[i % len(names)] for i in range(120)]
    adata.obs["lib"] = column.astype("category") if categorical else column

    def accepted(function):
        try:
            function()
        except TypeError:
            return False
        return True

    field = CategoricalObsField("lib", "lib")

    def register():
        field.get_summary_stats(field.register_field(adata))
        field.transfer_field(field.register_field(adata), adata)

    for keys in ({"library_key": "lib"}, {"batch_key": "lib"}):
        assert accepted(lambda keys=keys: check(adata, **keys)) == accepted(register)
    adata.obs["lib"] = adata.obs["lib"].map(str)
    check(adata, library_key="lib")


def test_names_that_no_spot_has_must_go_with_the_others():
    """As scvi-tools sorts all categories."""
    adata = tissue()
    adata.obs["lib"] = adata.obs["lib"].cat.add_categories([3])
    with pytest.raises(TypeError, match=r"str \('a'\), int \(3\).*map\(str\)"):
        check(adata, library_key="lib")
    adata.obs["lib"] = adata.obs["lib"].map(str)
    check(adata, library_key="lib")


@pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("name", ["NaN", "inf", "negative", "fractions"])
def test_bad_counts_in_sparse_matrices(name, to_format):
    change, kwargs, error, parts = CASES[name]
    adata = change(tissue())
    adata.X = to_format(adata.X)
    with pytest.raises(error) as caught:
        check(adata, **kwargs)
    assert all(part in str(caught.value) for part in parts)


def test_backed(tmp_path):
    tissue().write_h5ad(tmp_path / "tissue.h5ad")
    adata = ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"backed.*adata.to_memory\(\)"):
        check(adata)
    adata.file.close()


def test_image_of_another_length():
    adata = tissue()
    with pytest.raises(ValueError, match=r"'image' is of incorrect shape.*\(119,\).*\(120,\)"):
        adata.obsm["image"] = np.zeros((119, 3))  # anndata lets no such array in


def test_a_few_shared_positions_only_warn():
    adata = share_positions(1)(tissue(300))
    with pytest.warns(UserWarning, match=r"2 spots \('spot0', 'spot1'\) share their position"):
        check(adata)
    adata.obs["half"] = ["u"] * 150 + ["v"] * 150  # both are of the same section
    with pytest.warns(UserWarning, match="share their position"):
        check(adata)


def test_few_spots_warn():
    with pytest.warns(UserWarning, match="only 50 spots"):
        check(tissue()[:50].copy())


def test_nothing_is_changed():
    adata = tissue()
    adata.X = sparse.csc_matrix(adata.X)
    adata.layers["observed"] = sparse.csr_matrix(adata.layers["observed"])
    before = adata.copy()
    check(adata, **EVERYTHING)
    assert (adata.X != before.X).nnz == 0
    assert (adata.layers["observed"] != before.layers["observed"]).nnz == 0
    assert adata.obs.equals(before.obs)
    assert set(adata.uns) == set(before.uns)


GENES = [f"gene{j}" for j in range(12)]


@pytest.mark.parametrize(
    ("expected", "parts"),
    [
        (GENES[::-1], ["another order", "position 0 holds 'gene0'", "'gene11'"]),
        ([*GENES, "EPCAM", "ERBB2"], ["lacks 2 of the model's 14", "'EPCAM', 'ERBB2'"]),
        (GENES[:9], ["3 genes that the model does not have", "'gene9', 'gene10', 'gene11'"]),
        ([*GENES[:11], "EPCAM"], ["lacks 1", "'EPCAM'"]),
    ],
)
def test_genes_of_new_data(expected, parts):
    with pytest.raises(ValueError, match=r"adata\[:, model_genes\]\.copy\(\)") as caught:
        validate_genes(expected, tissue())
    assert all(part in str(caught.value) for part in parts)


def test_same_genes_pass():
    validate_genes(GENES, tissue())
    validate_genes(np.array(GENES), tissue())
    with pytest.raises(ValueError, match=r"duplicated genes: 'gene1'"):
        validate_genes([name for name in GENES if name != "gene3"], renamed("var")(tissue()))


def sections(apart=0.0, n=120):
    adata = tissue(n)
    adata.obs["section"] = np.repeat(["mouse 1", "mouse 2"], n // 2)
    adata.obsm["spatial"][n // 2 :] += apart
    return adata


def test_sections_over_each_other_need_the_key():
    with pytest.raises(
        ValueError, match=r"obs\['section'\] has 2 values \('mouse 1', 'mouse 2'\).*library_key='section'"
    ):
        check(sections())
    check(sections(), library_key="section")
    # New data is placed as the model's was.
    check(sections(), query=True)


def test_sections_beside_each_other_without_the_key_warn():
    with pytest.warns(UserWarning, match="taken for one section. Pass library_key='section'"):
        check(sections(apart=1000))
    adata = sections(apart=1000)
    check(adata, batch_key="section")
    adata.obs["section"] = adata.obs_names  # of single spots
    check(adata)
    adata.obs["section"] = "mouse 1"
    check(adata)


def test_all_that_is_missing_is_named_at_once():
    adata = tissue()
    del adata.obs["lib"], adata.obs["depth"], adata.obsm["image"]
    with pytest.raises(KeyError) as caught:
        check(adata, **EVERYTHING)
    for part in ("obs['lib'] (library_key)", "obs['depth'] (size_factor_key)", "obsm['image'] (image_key)", "chip"):
        assert part in str(caught.value)


def test_the_view_of_the_registry_lists_the_genes(capsys):
    adata = tissue(n_genes=2)
    field = CountsField("X", "counts")
    rich.print(field.view_state_registry(field.register_field(adata)))
    assert "adata.layers['counts']" in (shown := capsys.readouterr().out) and "gene0, gene1" in shown


@pytest.mark.parametrize("value", [0, -1.0, np.inf, "20", True])
def test_distances_are_positive(value):
    with pytest.raises(ValueError, match="max_distance=.* must be a number above 0"):
        check(tissue(), max_distance=value)


def test_a_distance_in_another_unit_is_refused():
    check(tissue(), max_distance=20)
    with pytest.raises(
        ValueError, match=r"max_distance=0.01 leaves 100% of the spots.*unit of adata.obsm\['spatial'\]"
    ):
        check(tissue(), max_distance=0.01)
