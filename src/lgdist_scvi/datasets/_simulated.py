"""A simulated tissue with a known true expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse, spatial

# Visium: spots of 55 um every 100 um, at about 0.73 um per pixel.
PITCH = 137.0
SPOT_DIAMETER = 75.0
IMAGE_SCALE = 0.05
DOMAINS = ("layer 1", "layer 2", "layer 3", "layer 4", "nest")
COLORS = np.array(
    [[222, 170, 196], [198, 140, 184], [170, 118, 178], [206, 182, 208], [112, 72, 140]], dtype=np.float64
)
DISPERSION = 4.0


def simulated_tissue(
    n_spots: int = 1000, n_genes: int = 400, n_libraries: int = 1, depth: float = 3000, seed: int = 0
) -> AnnData:
    """Simulate Visium-like sections of a layered tissue.

    Spots lie on a hexagonal lattice within a rounded outline. Four layers and a few nests form five domains. The log
    rate of a gene is the sum of its log abundance, which varies by orders of magnitude, and of contributions from
    programmes: domains (marker genes), smooth gradients, and a cell state that varies between single spots. Counts are
    negative binomial with mean depth times share. The libraries are sections of one tissue: their outlines and domains
    differ slightly and their positions overlap, so `library_key` is needed.

    Parameters
    ----------
    n_spots
        Total number of spots of all libraries.
    n_genes
        Number of genes.
    n_libraries
        Number of sections.
    depth
        Median depth, in counts per spot.
    seed
        Seed; equal seeds give equal data.

    Returns
    -------
    Spots and genes, with counts in ``X`` and ``layers["counts"]`` (CSR, float32); the true expected share of every gene
    in ``layers["rate"]`` (float32, rows sum to 1); ``obs``: ``domain``, ``library_id``, ``array_row``, ``array_col``;
    ``var["marker_of"]``; positions in pixels in ``obsm["spatial"]``; eight image features that depend on the domain in
    ``obsm["X_image"]``; a small image of each section in ``uns["spatial"]``. Every spot and every gene has a count.

    Raises
    ------
    ValueError
        If there are too few spots or genes, or `depth` is not positive.

    Examples
    --------
    >>> tissue = lgdist_scvi.datasets.simulated_tissue(n_spots=200, n_genes=50, n_libraries=2)
    >>> tissue.shape
    (200, 50)
    """
    if n_libraries < 1 or n_spots < 10 * n_libraries:
        raise ValueError(f"n_spots={n_spots} is too few for n_libraries={n_libraries}; at least 10 spots each.")
    if n_genes < 10 or depth <= 0:
        raise ValueError(f"n_genes={n_genes} must be at least 10 and depth={depth} positive.")
    rng = np.random.default_rng(seed)
    sizes = [len(part) for part in np.array_split(np.arange(n_spots), n_libraries)]
    names = [f"section_{i + 1}" for i in range(n_libraries)]
    tissue = _Tissue(rng)
    sections = [tissue.section(size, rng) for size in sizes]
    lattice = np.concatenate([section["lattice"] for section in sections])
    unit = np.concatenate([section["unit"] for section in sections])
    domain = np.concatenate([section["domain"] for section in sections])
    library = np.repeat(np.arange(n_libraries), sizes)

    rate, marker_of = _rates(unit, domain, n_genes, rng)
    spot_depth = depth * np.exp(rng.normal(0, 0.35, n_spots) + 0.25 * np.sin(4 * unit[:, 0] + 2 * unit[:, 1]))
    spot_depth *= np.where(domain == len(DOMAINS) - 1, 1.4, 1.0)
    spot_depth *= depth / np.median(spot_depth)
    counts = _counts(rate, spot_depth, rng)

    pixels = _pixels(lattice)
    adata = AnnData(
        X=sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {
                "domain": pd.Categorical.from_codes(domain, categories=list(DOMAINS)),
                "library_id": pd.Categorical.from_codes(library, categories=names),
                "array_row": lattice[:, 0],
                "array_col": lattice[:, 1],
            },
            index=[f"{names[i]}_spot_{j + 1}" for i, size in enumerate(sizes) for j in range(size)],
        ),
        var=pd.DataFrame(
            {"marker_of": pd.Categorical.from_codes(marker_of, categories=[*DOMAINS, "none"])},
            index=[f"gene_{j + 1}" for j in range(n_genes)],
        ),
        obsm={"spatial": pixels, "X_image": _image_features(domain, unit, rng)},
    )
    adata.layers["counts"] = adata.X.copy()
    adata.layers["rate"] = rate.astype(np.float32)
    adata.uns["spatial"] = {
        name: _picture(pixels[library == i], domain[library == i], rng) for i, name in enumerate(names)
    }
    return adata


class _Tissue:
    """Outline and domains in units of the tissue's radius, shared by its sections."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.wobble = rng.normal(0, [0.07, 0.05, 0.03])
        self.phase = rng.uniform(0, 2 * np.pi, 4)
        angle = rng.uniform(0, 2 * np.pi) + np.array([0.0, 2.2, 4.1])
        self.nests = 0.5 * np.column_stack([np.cos(angle), np.sin(angle)])
        self.nest_radius = np.array([0.24, 0.18, 0.14])

    def section(self, n_spots: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Place the spots of one section, slightly different from the others, and assign their domains."""
        shift = rng.normal(0, 0.03, 6)
        side = int(np.ceil(1.4 * np.sqrt(n_spots))) + 8
        row, col = (grid.ravel() for grid in np.mgrid[0:side, 0:side])
        lattice = np.column_stack([row, 2 * col + row % 2])
        plane = _pixels(lattice) - _pixels(lattice).mean(axis=0)
        angle = np.arctan2(plane[:, 1], plane[:, 0])
        outline = 1 + sum((self.wobble[k] + shift[k] / 2) * np.cos((k + 2) * angle + self.phase[k]) for k in range(3))
        radius = np.hypot(plane[:, 0], 1.2 * plane[:, 1]) / outline
        # The outline is scaled to hold exactly n_spots, in lattice order.
        inside = np.sort(np.argsort(radius, kind="stable")[:n_spots])
        unit = plane[inside] / np.sort(radius)[n_spots - 1]

        height = unit[:, 1] + 0.15 * np.sin(3 * unit[:, 0] + self.phase[3]) + shift[3]
        domain = np.digitize(height, [-0.42, 0.0, 0.4])
        for centre, reach in zip(self.nests, self.nest_radius, strict=True):
            domain[np.linalg.norm(unit - centre - shift[4:], axis=1) < reach] = len(DOMAINS) - 1
        return {"lattice": lattice[inside], "unit": unit, "domain": domain}


def _pixels(lattice: np.ndarray) -> np.ndarray:
    """Positions (x, y) in pixels from rows and columns of a Visium lattice, whose columns count half pitches."""
    return PITCH * np.column_stack([lattice[:, 1] / 2, lattice[:, 0] * np.sqrt(3) / 2]) + PITCH


def _rates(
    unit: np.ndarray, domain: np.ndarray, n_genes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of shape ``(n_spots, n_genes)`` and the domain that each gene marks (one past the last: none)."""
    n_spots, n_domains = len(unit), len(DOMAINS)
    abundance = np.clip(rng.normal(-0.5, 3.2, n_genes), -6.5, 5.5)
    marker_of = np.full(n_genes, n_domains)
    order = rng.permutation(n_genes)
    marked = order[: max(n_domains, int(0.25 * n_genes))]
    marker_of[marked] = np.arange(len(marked)) % n_domains
    effect = rng.normal(0, 0.12, (n_domains, n_genes))
    effect[:, marked] -= 1.5
    effect[marker_of[marked], marked] += rng.uniform(1.5, 3.0, len(marked))

    frequency = rng.normal(0, 1.6, (3, 2))
    gradients = np.sin(unit @ frequency.T + rng.uniform(0, 2 * np.pi, 3))
    on_gradient = rng.normal(0, 0.5, (3, n_genes)) * (rng.random(n_genes) < 0.35)
    # A state that neighbours hardly share: predictable from a spot's other genes, not from its neighbours.
    state = rng.normal(0, 1, (n_spots, 2))
    on_state = rng.normal(0, 0.4, (2, n_genes)) * (rng.random(n_genes) < 0.4)

    log_rate = abundance + effect[domain] + gradients @ on_gradient + state @ on_state
    rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
    return rate / rate.sum(axis=1, keepdims=True), marker_of


def _counts(rate: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Negative-binomial counts (float32) without empty spots or genes."""
    mean = rate * depth[:, None]
    counts = rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION)).astype(np.float32)
    for gene in np.flatnonzero(counts.sum(axis=0) == 0):
        counts[np.argmax(mean[:, gene]), gene] = 1
    for spot in np.flatnonzero(counts.sum(axis=1) == 0):
        counts[spot, np.argmax(mean[spot])] = 1
    return counts


def _image_features(domain: np.ndarray, unit: np.ndarray, rng: np.random.Generator, n_features: int = 8) -> np.ndarray:
    """Noisy features that depend on the domain and, weakly, on the position."""
    centres = rng.normal(0, 1, (len(DOMAINS), n_features))
    drift = unit @ rng.normal(0, 0.3, (2, n_features))
    return (centres[domain] + drift + rng.normal(0, 1.3, (len(domain), n_features))).astype(np.float32)


def _picture(pixels: np.ndarray, domain: np.ndarray, rng: np.random.Generator) -> dict:
    """Paint an image of a section that looks stained, in the layout of squidpy."""
    width, height = np.ceil((pixels.min(axis=0) + pixels.max(axis=0)) * IMAGE_SCALE).astype(int)
    y, x = np.mgrid[0:height, 0:width]
    distance, nearest = spatial.cKDTree(pixels).query(np.column_stack([x.ravel(), y.ravel()]) / IMAGE_SCALE)
    color = COLORS[domain[nearest]] + rng.normal(0, 8, (len(nearest), 1))
    color[distance > 0.75 * PITCH] = 244
    return {
        "images": {"hires": np.clip(color, 0, 255).reshape(height, width, 3).astype(np.uint8)},
        "scalefactors": {
            "tissue_hires_scalef": IMAGE_SCALE,
            "spot_diameter_fullres": SPOT_DIAMETER,
            "fiducial_diameter_fullres": 1.6 * SPOT_DIAMETER,
        },
        "metadata": {},
    }
