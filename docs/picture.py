#!/usr/bin/env python3
"""Draw the picture of the landing page: a section of human cortex, measured and completed (`make picture`).

What is drawn is also written into the file, in numbers, so that it can be compared with the data and with the benchmarks.
"""

import json
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.spatial import KDTree
from sklearn.metrics import adjusted_rand_score

from lgdist_scvi import LGDiST, pl, pp, tl
from lgdist_scvi.datasets import example_tissue

GENES = ["PCP4", "KRT17"]  # layer 5, layer 6
PITCH = 100  # micrometres between spots of Visium
SIZE, DOTS_PER_INCH = (9, 6.2), 178  # 1600 pixels, shown on 800


def name_as_layers(adata: AnnData) -> None:
    """Name each domain after the annotated layer in which most of it lies, so that both have its colour; the smaller of two is a part."""
    overlap = pd.crosstab(adata.obs["domain"], adata.obs["layer"])
    names, layers = {}, list(adata.obs["layer"].cat.categories)
    for domain in overlap.max(axis=1).sort_values(ascending=False).index:
        layer = overlap.loc[domain].idxmax()
        names[domain] = f"part of {layer}" if layer in names.values() else layer
    order = [*layers, *(name for name in names.values() if name not in layers)]
    adata.obs["domain"] = pd.Categorical(adata.obs["domain"].map(names), categories=order)
    adata.obs["layer"] = adata.obs["layer"].cat.set_categories(order)


def numbers(adata: AnnData) -> PngInfo:
    """Agreement of domains and layers, and means of the genes in each layer, in counts per 10,000."""
    known = adata.obs["layer"].notna()
    shares = adata[:, GENES].layers["counts"].toarray() / adata.obs[["total_counts"]].to_numpy()
    panels = {
        "measured": 1e4 * shares,
        "completed": np.expm1(adata[:, GENES].layers["lgdist"]),
        "uncertainty": np.asarray(adata[:, GENES].layers["lgdist_std"]),
    }
    drawn = {
        panel: pd.DataFrame(values, adata.obs_names, GENES).groupby(adata.obs["layer"], observed=True).mean().to_dict()
        for panel, values in panels.items()
    }
    drawn["agreement"] = adjusted_rand_score(adata.obs["layer"][known], adata.obs["domain"][known])
    drawn["source"] = adata.uns["source"]
    written = PngInfo()
    written.add_text("drawn", json.dumps(drawn))
    return written


def draw(adata: AnnData) -> Figure:
    """Two genes, measured, completed and uncertain; domains, and the layers that were annotated by hand."""
    unit = PITCH / np.median(KDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=2)[0][:, 1])
    look = {"img": False, "scalebar_dx": unit}
    depth = {"measured_layer": "counts", "size_factor_key": "total_counts"}
    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3.5, 1))
    pl.completion(adata, GENES, uncertainty=True, axes=left.subplots(2, 3), **depth, **look)
    above, below = right.subplots(2, 1)
    pl.domains(adata, axes=above, **look)
    above.set_title("domains")
    pl.domains(adata, "layer", axes=below, **look)
    below.set_title("annotated by hand")
    marks = below.get_legend().legend_handles
    for ax in (above, below):
        ax.get_legend().remove()
    right.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, columnspacing=1, handlelength=1)
    return figure


def main() -> None:
    """Train, complete and draw."""
    adata = pp.select_genes(example_tissue("cortex"), layer="counts", keep=GENES)
    adata.obs["layer"] = adata.obs["layer"].astype("category")
    LGDiST.setup_anndata(adata, layer="counts", size_factor_key="total_counts")
    model = LGDiST(adata)
    model.train(enable_progress_bar=False)
    model.add_completed_layer(return_std=True, silent=True)
    model.add_latent_representation()
    tl.domains(adata, n_domains=7)
    written = numbers(adata)
    name_as_layers(adata)
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 11}):
        draw(adata).savefig(page := BytesIO(), dpi=DOTS_PER_INCH)
    picture = Image.open(page).convert("RGB").quantize(128)
    picture.save(Path(__file__).with_name("picture.png"), optimize=True, pnginfo=written)


if __name__ == "__main__":
    main()
