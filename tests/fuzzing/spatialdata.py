"""SpatialData: tables, the shapes that they annotate and their transformations, in memory and in a store."""

import warnings

import numpy as np
import pandas as pd
from formats import as_spatialdata
from small_models import OPTIONS, READ, fit, tissue

from lgdist_scvi import LGDiST

from .judge import Harmful, Silent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import spatialdata
    from geopandas import GeoSeries
    from spatialdata.transformations import Affine, Scale, get_transformation, set_transformation

BASE = {}
REGIONS = ("spots_section_1", "spots_section_2")


def prepare(folder):
    adata = tissue(n_spots=80, n_genes=12, n_libraries=2)
    BASE["sdata"], BASE["adata"] = as_spatialdata(adata), adata


def column(name, change):
    def damage(sdata, rng):
        obs = sdata["table"].obs
        obs[name] = change(obs[name].to_numpy().copy(), rng)

    return damage


def at_random(value):
    def change(values, rng):
        values = values.astype(object)
        values[rng.choice(len(values), 3, replace=False)] = value
        return values

    return change


def counts(value):
    def damage(sdata, rng):
        table = sdata["table"]
        array = table.layers["counts"].toarray().astype(float)
        array[rng.integers(len(array), size=2), rng.integers(array.shape[1], size=2)] = value
        table.layers["counts"] = array

    return damage


def attributes(change):
    def damage(sdata, rng):
        change(sdata["table"].uns)

    return damage


def put(name, value):
    def change(uns):
        uns["spatialdata_attrs"][name] = value

    return change


def shapes(change):
    def damage(sdata, rng):
        name = str(rng.choice(REGIONS))
        before = sdata.shapes[name]
        after = change(before.copy(), rng)
        set_transformation(after, get_transformation(before, get_all=True), set_all=True)
        dict.__setitem__(sdata.shapes.data, name, after)

    return damage


def without(frame, rng):
    return frame.iloc[3:]


def twice(frame, rng):
    return pd.concat([frame, frame.iloc[:3]])


def renumbered(frame, rng):
    frame.index = rng.permutation(frame.index.to_numpy())
    return frame


def as_text(frame, rng):
    frame.index = frame.index.astype(str)
    return frame


def discs(frame, rng):
    frame["geometry"] = GeoSeries(frame.geometry.buffer(3.0).to_numpy(), index=frame.index)
    return frame


def without_place(value):
    def change(frame, rng):
        from shapely import Point

        places = frame.geometry.to_numpy().copy()
        places[rng.integers(len(places))] = None if value is None else Point(value, value)
        frame["geometry"] = GeoSeries(places, index=frame.index)
        return frame

    return change


def one_place(frame, rng):
    places = np.repeat(frame.geometry.to_numpy()[:1], len(frame))
    frame["geometry"] = GeoSeries(places, index=frame.index)
    return frame


def radius(value):
    def change(frame, rng):
        frame["radius"] = value
        return frame

    return change


def no_shapes(sdata, rng):
    del sdata.shapes[str(rng.choice(REGIONS))]


def no_table(sdata, rng):
    del sdata.tables["table"]


def rows(choice):
    def damage(sdata, rng):
        table = choice(sdata["table"], rng)
        del sdata.tables["table"]
        dict.__setitem__(sdata.tables.data, "table", table)

    return damage


def transformation(make):
    def damage(sdata, rng):
        for name in REGIONS:
            set_transformation(sdata.shapes[name], make(), "section_1")

    return damage


def affine(*matrix):
    return lambda: Affine(np.array(matrix, float).reshape(3, 3), input_axes=("x", "y"), output_axes=("x", "y"))


CHANGES = {
    "nothing": lambda sdata, rng: None,
    "instances in another order": column("instance", lambda values, rng: rng.permutation(values)),
    "unknown instances": column("instance", lambda values, rng: values + 1000),
    "instances twice": column("instance", lambda values, rng: values // 2),
    "instances of text": column("instance", lambda values, rng: values.astype(str)),
    "instances with NaN": column("instance", at_random(None)),
    "instances of parts": column("instance", lambda values, rng: values + 0.5),
    "unknown regions": column("region", at_random("elsewhere")),
    "regions with NaN": column("region", at_random(None)),
    "one region": column("region", lambda values, rng: [REGIONS[0]] * len(values)),
    "count NaN": counts(np.nan),
    "negative count": counts(-1),
    "part of a count": counts(0.5),
    "count infinite": counts(np.inf),
    "no attributes": attributes(lambda uns: uns.pop("spatialdata_attrs")),
    "no region": attributes(put("region", None)),
    "another region": attributes(put("region", "elsewhere")),
    "another region column": attributes(put("region_key", "elsewhere")),
    "another instance column": attributes(put("instance_key", "elsewhere")),
    "no instance column": attributes(lambda uns: uns["spatialdata_attrs"].pop("instance_key")),
    "attributes of text": attributes(lambda uns: uns.update(spatialdata_attrs="x")),
    "shapes missing": shapes(without),
    "shapes twice": shapes(twice),
    "shapes renumbered": shapes(renumbered),
    "shapes named by text": shapes(as_text),
    "discs": shapes(discs),
    "a place NaN": shapes(without_place(np.nan)),
    "a place infinite": shapes(without_place(np.inf)),
    "no place": shapes(without_place(None)),
    "one place": shapes(one_place),
    "radius 0": shapes(radius(0.0)),
    "radius NaN": shapes(radius(np.nan)),
    "no shapes": no_shapes,
    "no table": no_table,
    "rows in another order": rows(lambda table, rng: table[rng.permutation(table.n_obs)].copy()),
    "few rows": rows(lambda table, rng: table[:5].copy()),
    "no rows": rows(lambda table, rng: table[:0].copy()),
    "genes in another order": rows(lambda table, rng: table[:, ::-1].copy()),
    "a view": rows(lambda table, rng: table[3:]),
    "scaled": transformation(lambda: Scale([2.0, 2.0], axes=("x", "y"))),
    "scale 0": transformation(lambda: Scale([0.0, 0.0], axes=("x", "y"))),
    "scale NaN": transformation(lambda: Scale([np.nan, 1.0], axes=("x", "y"))),
    "turned": transformation(affine(0, -1, 5, 1, 0, 5, 0, 0, 1)),
    "flat": transformation(affine(1, 1, 0, 1, 1, 0, 0, 0, 1)),
}
OPTIONS_OF = {
    "region": [REGIONS[1], "elsewhere", [], list(REGIONS), 3, [3]],
    "coordinate_system": ["section_1", "elsewhere", 3, ["section_1"]],
    "table_key": ["elsewhere", 3, None, []],
    "library_key": ["domain", "elsewhere", 3],
    "layer": ["elsewhere", 3, []],
    "spatial_key": ["xy", 3, ""],
    "n_neighbors": [0, 500, "x"],
}


def expected_places(sdata, table):
    """Centroids of the shapes that the rows name, in their own coordinates."""
    places = np.full((table.n_obs, 2), np.nan)
    for row, (region, instance) in enumerate(zip(table.obs["region"], table.obs["instance"], strict=True)):
        centre = sdata.shapes[region].geometry.loc[instance].centroid
        places[row] = centre.x, centre.y
    return places


def contents(table):
    return {
        "counts": np.asarray(getattr(table.layers["counts"], "todense", lambda: table.layers["counts"])())
        .astype(str)
        .tobytes(),
        "obs": table.obs.astype(str).to_csv() if table.n_obs else "",
        "names": [*table.obs_names, *table.var_names],
    }


def draw(rng, folder):
    sdata = BASE["sdata"]
    stored = bool(rng.random() < 0.3)
    kinds = [str(kind) for kind in rng.choice(list(CHANGES), int(rng.integers(1, 3)), replace=False)]
    options = {}
    if rng.random() < 0.25:
        name = str(rng.choice(list(OPTIONS_OF)))
        options = {name: OPTIONS_OF[name][rng.integers(len(OPTIONS_OF[name]))]}
        kinds = [*kinds[:1], f"{name}={options[name]!r}"]
    if stored:
        sdata.write(folder / "store.zarr")
        sdata = spatialdata.read_zarr(folder / "store.zarr")
        on_disk = contents(sdata["table"])
        kinds.append("in a store")
    for kind in kinds:
        if kind in CHANGES:
            try:
                CHANGES[kind](sdata, rng)
            except (AttributeError, KeyError, TypeError, ValueError, IndexError):
                pass  # there is no such thing any more

    def use():
        table = sdata.tables.get("table")
        before = None if table is None else contents(table)
        try:
            registered = LGDiST.setup_spatialdata(sdata, **({"layer": "counts"} | options))
            model = fit(LGDiST(registered, **OPTIONS), max_epochs=1)
            model.add_completed_table(sdata, **READ)
        finally:
            if table is not None and any(
                contents(table)[name] != value for name, value in before.items() if name != "obs"
            ):
                raise Harmful("the table changed")
            if (
                stored
                and contents(spatialdata.read_zarr(folder / "store.zarr")["table"])["counts"] != on_disk["counts"]
            ):
                raise Harmful("the store changed")
        table = sdata["table"]
        rows = table.obs_names.get_indexer(registered.obs_names)
        if not np.isfinite(np.asarray(table.layers["lgdist"])[rows]).all():
            raise Silent("values that are not finite")
        if "coordinate_system" not in options and "spatial_key" not in options:
            places = expected_places(sdata, registered)
            if not np.allclose(np.asarray(registered.obsm["spatial"]), places):
                raise Silent("positions of other spots")

    return kinds, use
