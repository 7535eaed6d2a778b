"""Means over areas of tissue: measured, completed, and the two combined by their errors."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import gammaln, softmax

from lgdist_scvi.data._areas import disjoint_patches
from lgdist_scvi.data._hidden import dense
from lgdist_scvi.data._tissue import in_strips
from lgdist_scvi.module._field_codes import FIT_ENTRIES, fit_field
from lgdist_scvi.train._seeds import seeded

from ._options import Reading
from ._reader import Reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView
    from lgdist_scvi.module._lgdist import LGDiSTModule

    Floats = NDArray[np.float64]

N_DRAWS = 50
PATCH_SIZES, TYPICAL_SIZE = (7, 19, 50, 150, 500), 50
LEAST_PATCHES, MOST_ENTRIES = 4, 100_000
SUM_BYTES = 1 << 29
"""Memory for sums over areas that are computed at once."""
OF_AREA_SPREAD = 0.5
"""Standard deviation of the log inflation of a gene among areas. Chosen on six sections, with seeds that no reported score uses."""
_OF_AREA = np.linspace(-1.5, 3, 10)
_MOST_KNOWN = 0.95  # part of a count's variance that the claimed one may be
_LEAST_KNOWN = 0.05  # part of a completed mean that is not of its own counts
_TINY = 1e-12
_LOG_RANGE, _PENALTY = (-3.0, 4.0), 2.0
OFFSET_SPREAD = 1.0
"""Standard deviation of the log inflation among genes of like share."""
_OFFSETS = np.linspace(-3, 4, 15)


class AreaSums(NamedTuple):
    """Sums over areas and what they say, each ``(n_areas, n_genes)`` but for the depth."""

    depth: Floats
    """Depth of their spots, ``(n_areas, 1)``."""
    counts: Floats
    """Visible counts."""
    exposure: Floats
    """Depth of the spots where the gene is visible."""
    mean: Floats
    """Completed share of the depth."""
    variance: Floats
    """Variance of the latter that the joint samples claim."""


class AreaMeans(NamedTuple):
    """Posterior of the mean share of the depth in areas, each ``(n_areas, n_genes)``."""

    mean: Floats
    variance: Floats


class Inflation(NamedTuple):
    """How many times larger the variance of completed means is than claimed."""

    of_gene: Floats
    """Log of it for each gene in patches of 50 spots, ``(n_genes,)``."""
    by_size: float
    """Change with the log number of spots."""
    largest: int
    """Spots of the largest patches from which this is known."""

    def of(self, genes: NDArray[np.int64], n_spots: NDArray) -> Floats:
        """Factor for genes and areas, ``(n_areas, n_genes)``, at least 1."""
        size = np.log(np.clip(n_spots, PATCH_SIZES[0], self.largest) / TYPICAL_SIZE)
        return np.exp(np.clip(self.of_gene[genes] + self.by_size * size[:, None], 0, _LOG_RANGE[1]))


def area_sums(
    reader: Reader,
    view: SpotView,
    areas: sparse.csr_matrix,
    genes: NDArray[np.int64],
    *,
    silent: bool,
) -> AreaSums:
    """Sums over areas, of which as many are in memory at once as :data:`SUM_BYTES` allows.

    Parameters
    ----------
    reader
        Reader of the view that draws joint samples.
    view
        What may be seen.
    areas
        1 for the spots of an area, ``(n_areas, n_spots)``.
    genes
        Numbers of the genes.
    silent
        Show no progress bar.

    Returns
    -------
    Sums, in the order of the areas.
    """
    parts = []
    size = max(1, SUM_BYTES // (8 * N_DRAWS * max(1, len(genes))))
    every = np.array_equal(genes, np.arange(view.n_genes))
    for start in range(0, areas.shape[0], size):
        block = areas[start : start + size]
        rows = np.unique(block.indices).astype(np.int64)
        members = block[:, rows].tocsc()
        shape = (block.shape[0], len(genes))
        draws = np.zeros((N_DRAWS, *shape))
        counts, exposure, mean, single = (np.zeros(shape) for _ in range(4))
        for place, seen, given, samples in reader.expectations(rows, None if every else genes, silent=silent):
            inside = members[:, place].tocsr()
            weights = inside.multiply(view.depth[rows[place]]).tocsr()
            squares = given.mean.new_zeros(given.mean.shape)
            for draw, sample in zip(draws, samples, strict=True):
                draw += weights @ sample.cpu().numpy()
                squares += sample.square()
            # The gamma distributions of single entries are added without sampling.
            alone = (squares / (N_DRAWS * given.shape)).cpu().numpy()
            single += weights.multiply(weights).tocsr() @ alone
            mean += weights @ given.mean.cpu().numpy()
            visible = seen.observed.cpu().numpy()
            counts += inside @ (seen.counts.cpu().numpy() * visible)
            exposure += weights @ visible
        depth = np.asarray(block @ view.depth, dtype=np.float64)[:, None]
        variance = (draws.var(axis=0, ddof=1) + single) / depth**2
        parts.append(AreaSums(depth, counts, exposure, mean / depth, variance))
    return AreaSums(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def combined(sums: AreaSums, factor: Floats) -> AreaMeans:
    """Completed means, moved towards the measured ones as far as their errors ask for.

    A completed mean contains the measured one already, with the weight that its claimed variance implies. What its true variance
    is larger by is an error that it does not know of, and for which the measured mean makes up. How large it is in this area is
    seen from the counts: where they are far from what the completion says without them, it is larger than usual.

    Parameters
    ----------
    sums
        Sums over areas.
    factor
        By how much the variance of the completed mean is usually larger than claimed, ``(n_areas, n_genes)``.
    """
    seen = np.maximum(sums.exposure, _TINY)
    noise = np.maximum(sums.mean, _TINY) / seen
    claimed = np.minimum(sums.variance, _MOST_KNOWN * noise)
    left = 1 - claimed / noise
    before = claimed / left  # variance of the completed mean before its own counts
    measured = sums.counts / seen
    alone = np.maximum((sums.mean - claimed / noise * measured) / left, _LEAST_KNOWN * np.maximum(sums.mean, _TINY))
    means, variances, weights = [], [], []
    for offset in _OF_AREA:
        unknown = (np.maximum(factor * np.exp(offset), 1) - 1) * claimed / left**2
        total = before + unknown + noise
        means.append(np.maximum(sums.mean + unknown / total * (measured - sums.mean), _TINY))
        variances.append((before + unknown) * noise / total)
        likely = _log_likelihood(sums.counts, alone * seen, alone**2 / np.maximum(before + unknown, _TINY**2))
        weights.append(likely - (offset / OF_AREA_SPREAD) ** 2 / 2)
    weight = softmax(weights, axis=0)
    mean = (weight * means).sum(axis=0)
    return AreaMeans(mean, (weight * (variances + np.square(means - mean))).sum(axis=0))


def _log_likelihood(counts: Floats, mean: Floats, shape: Floats) -> Floats:
    """Of negative-binomial counts, without what depends on the counts alone."""
    found = gammaln(counts + shape) - gammaln(shape) + shape * np.log(shape / (shape + mean))
    return found + counts * np.log(mean / (shape + mean))


def find_inflation(
    module: LGDiSTModule, view: SpotView, positions: NDArray, section: NDArray[np.intp], *, seed: int, silent: bool
) -> Inflation:
    """Compare what the field says from half of the molecules with the other half, in disjoint patches of several sizes.

    The field is fitted again, to that half alone: the trained one knows the other half.

    Parameters
    ----------
    module
        Trained module, which stays as it is.
    view
        What may be seen.
    positions, section
        Positions ``(n_spots, n_dimensions)`` and sections ``(n_spots,)`` of the spots.
    seed
        Seed of the molecules, patches and draws.
    silent
        Show no progress bar.
    """
    rows = np.arange(view.n_spots)
    if len(rows) * view.n_genes > FIT_ENTRIES:
        rows = np.sort(in_strips(view.graph)[: FIT_ENTRIES // view.n_genes])
    half, other = view.halved(rows, seed)
    module = copy.deepcopy(module)
    module.share.copy_(torch.from_numpy(half.share))
    with seeded(seed):
        fit_field(module, half, seed)
    assert module.field is not None
    module.field.mixing.fill_(1)  # the network knows the other half
    reader = Reader(module, half, Reading(n_samples=0, scale="rate", seed=seed), N_DRAWS)
    random = np.random.default_rng(seed)
    found = [disjoint_patches(positions[rows], section[rows], size, random) for size in PATCH_SIZES]
    areas = sparse.vstack([found[0], *(some for some in found[1:] if some.shape[0] >= LEAST_PATCHES)], format="csr")
    sums = area_sums(reader, half, areas, np.arange(view.n_genes), silent=silent)
    counts = dense(areas @ other).astype(np.float64)
    return _fitted(half.share, areas.getnnz(axis=1), counts, sums, random)


def _fitted(share: NDArray, n_spots: NDArray, counts: Floats, sums: AreaSums, random: np.random.Generator) -> Inflation:
    """Inflation that makes the counts of the other half most likely, negative-binomial around the completed means.

    First for genes of a given share in general, then for each gene as far as its own counts tell.
    """
    log_share = np.log(np.maximum(share, _TINY))
    rarity, size = log_share - log_share.mean(), np.log(n_spots / TYPICAL_SIZE)[:, None]
    mean = np.maximum(sums.mean * sums.exposure, _TINY)
    shape = np.maximum(sums.mean, _TINY) ** 2 / np.maximum(sums.variance, _TINY**2)
    seen = sums.exposure > 0

    def likelihood(log_factor: Floats, at: tuple[NDArray, NDArray] | tuple[()] = ()) -> Floats:
        return _log_likelihood(counts[at], mean[at], shape[at] / np.exp(np.clip(log_factor, *_LOG_RANGE)))

    patch, gene = np.nonzero(seen)
    if len(patch) > MOST_ENTRIES:
        chosen = random.choice(len(patch), MOST_ENTRIES, replace=False)
        patch, gene = patch[chosen], gene[chosen]

    def loss(values: Floats) -> float:
        level, by_share, by_size = values
        log_factor = level + by_share * rarity[gene] + by_size * size[patch, 0]
        return -float(likelihood(log_factor, (patch, gene)).sum()) + _PENALTY * float(values @ values)

    level, by_share, by_size = minimize(loss, np.zeros(3), method="L-BFGS-B").x
    usual = level + by_share * rarity
    own = np.array([(likelihood(usual + by_size * size + offset) * seen).sum(axis=0) for offset in _OFFSETS])
    weight = softmax(own - (_OFFSETS[:, None] / OFFSET_SPREAD) ** 2 / 2, axis=0)
    return Inflation(usual + _OFFSETS @ weight, float(by_size), int(n_spots.max()))
