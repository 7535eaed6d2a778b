"""Domains of a tissue: clusters of niches."""

from __future__ import annotations

import importlib.util
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from lgdist_scvi._checks import check_choice, check_label, check_name, check_positive, check_seed, check_whole
from lgdist_scvi._constants import Keys
from lgdist_scvi.data._areas import patches_around
from lgdist_scvi.data._entries import listing
from lgdist_scvi.data._neighbors import library_codes
from lgdist_scvi.data._validation import check_obs_column, check_positions

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

Method = Literal["mixture", "kmeans"]

N_STARTS = 10
"""Starts of a mixture, each from a k-means clustering, or of k-means; the likeliest result counts."""
N_NEIGHBORS = 15
MOST_DOMAINS = 15
"""Largest number of domains that is suggested."""
FIT_SPOTS = 10_000
"""Maximum number of spots that mixture or k-means are fitted to; the others are assigned to their clusters."""
# Directions of a spread below this share of the largest are rounding.
_ROUNDING = 1e-5
# Added to the variances, which are 1 for all spots together: no domain is flat.
_LEAST_VARIANCE = 1e-3
# Spots that share most of their surroundings are not so many observations.
_SPOTS_OF_NICHE = 19


def domains(
    adata: AnnData,
    n_domains: int | None = None,
    *,
    method: Method = "mixture",
    resolution: float | None = None,
    use_rep: str = Keys.NICHE,
    key_added: str = Keys.DOMAINS,
    n_seeds: int = 5,
    seed: int = 0,
    vote_spots: int = 1,
    spatial_key: str = "spatial",
    library_key: str | None = None,
) -> None:
    """Find the domains of a tissue: clusters of the niches of its spots.

    Clusters are the components of a Gaussian mixture with one covariance for all, or those of k-means. They are found with several
    seeds; the likeliest of them are kept, and how well all agree says how far to trust them.

    Writes ``obs[key_added]``, named by numbers from the largest domain on, and ``uns[key_added]`` with the settings, ``"n_domains"``,
    ``"stability"`` (mean adjusted Rand index of all pairs of seeds, at most 1; NaN for one seed), and, where the number was suggested,
    ``"criterion"``, that of each number, higher is better.

    Parameters
    ----------
    adata
        Annotated spots, with niches as :meth:`lgdist_scvi.LGDiST.add_latent_representation` writes them.
    n_domains
        Number of domains. By default, without `resolution`, the number for which a mixture has the best Bayesian information criterion, 2 to
        15; spots that share their surroundings count as one. It is a suggestion: draw the domains.
    method
        "mixture" finds thin layers where k-means cuts thick ones in two, and was better for spots; "kmeans" was as good or better for single
        cells, whose domains differ more (:doc:`/benchmarks/domains`).
    resolution
        Instead of number and method: resolution of Leiden clusters of the graph of most similar niches, no unit; more clusters the
        higher it is. Needs igraph.
    use_rep
        Key of the representation in ``obsm``.
    key_added
        Column of ``obs`` for the domains, and key of their settings in ``uns``.
    n_seeds
        Number of seeds, `seed` and those that follow.
    seed
        First seed.
    vote_spots
        Each spot takes the domain of most of the spots nearest to it, so many, itself included; 1 leaves it as found. Votes make
        compact domains, and remove what is thin.
    spatial_key, library_key
        Positions in ``obsm`` and column of ``obs`` with the sections, for the votes.

    Raises
    ------
    KeyError
        If a named array or column is missing.
    ImportError
        If Leiden is asked for without igraph.
    TypeError
        If a name is none.
    ValueError
        If an option is out of range, both `n_domains` and `resolution` are given, the representation is not finite or has fewer spots
        than domains, or positions or sections for the vote are missing for a spot.

    References
    ----------
    Mixtures: :cite:p:`fraley2002model`; Leiden: :cite:p:`traag2019leiden`; adjusted Rand index: :cite:p:`hubert1985comparing`;
    information criterion: :cite:p:`schwarz1978estimating`.

    Examples
    --------
    >>> model.add_latent_representation()
    >>> lgdist_scvi.tl.domains(adata, n_domains=4)
    >>> len(adata.obs["domain"].cat.categories)
    4
    """
    from sklearn.metrics import adjusted_rand_score

    check_choice("method", method, get_args(Method))
    check_name(key_added=key_added)
    check_label(use_rep=use_rep, spatial_key=spatial_key, library_key=library_key)
    values = _representation(adata, use_rep)
    if n_domains is not None and resolution is not None:
        raise ValueError("Give either n_domains or resolution, not both.")
    check_whole(1, n_seeds=n_seeds, vote_spots=vote_spots)
    check_seed(seed)
    if resolution is not None:
        check_positive(resolution=resolution)
    patches = _patches(adata, vote_spots, spatial_key, library_key) if vote_spots > 1 else None
    settings: dict[str, Any] = {"use_rep": use_rep, "seed": seed, "n_seeds": n_seeds, "vote_spots": vote_spots}
    if resolution is not None:
        settings |= {"method": "leiden", "resolution": float(resolution)}
        found, best = _leiden(values, resolution, seed, n_seeds), 0
    else:
        settings["method"] = method
        if n_domains is None:
            n_domains, settings["criterion"] = _suggested(values, seed)
        check_whole(1, n_domains=n_domains)
        if n_domains > len(values):
            raise ValueError(f"n_domains={n_domains} is more than the {len(values)} spots.")
        found, best = _clusters(values, method, n_domains, seed, n_seeds)
    clusterings = found if patches is None else [voted(labels, patches) for labels in found]
    agreement = [adjusted_rand_score(one, other) for one, other in combinations(clusterings, 2)]
    adata.obs[key_added] = _named(clusterings[best])
    settings["n_domains"] = len(adata.obs[key_added].cat.categories)
    settings["stability"] = float(np.mean(agreement)) if agreement else float("nan")
    adata.uns[key_added] = settings


def _representation(adata: AnnData, use_rep: str) -> NDArray[np.float64]:
    """Values to cluster, ``(n_spots, n_dimensions)``."""
    if use_rep not in adata.obsm:
        raise KeyError(
            f"adata.obsm[{use_rep!r}] is missing (found: {listing(list(adata.obsm))}); call model.add_latent_representation(), or "
            "correct use_rep=..."
        )
    values = np.asarray(adata.obsm[use_rep], dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(
            f"adata.obsm[{use_rep!r}] has shape {values.shape}; it must have one row per spot and be a matrix."
        )
    if len(wrong := adata.obs_names[~np.isfinite(values).all(axis=1)]):
        raise ValueError(
            f"adata.obsm[{use_rep!r}] is not finite in {len(wrong)} spots: {listing(list(wrong))}; leave them out."
        )
    if len(values) < 2:
        raise ValueError(f"adata has {len(values)} spots; domains need at least 2.")
    return values


def _patches(adata: AnnData, n_spots: int, spatial_key: str, library_key: str | None) -> Any:
    """Each spot with those nearest to it in its section."""
    positions = check_positions(adata, spatial_key)
    check_obs_column(adata, library_key, "library_key")
    section = library_codes(None if library_key is None else adata.obs[library_key], adata.n_obs)
    return patches_around(positions, section, n_spots)


def _mixture(n_domains: int, seed: int, n_starts: int) -> Any:
    """A Gaussian mixture with one covariance, to be fitted."""
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(
        n_domains,
        covariance_type="tied",
        reg_covar=_LEAST_VARIANCE,
        max_iter=200,
        n_init=n_starts,
        random_state=seed,
    )


def _kmeans(n_domains: int, seed: int, n_starts: int) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(n_domains, n_init=n_starts, random_state=seed)


def _some(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The spots to fit to."""
    if len(values) <= FIT_SPOTS:
        return values
    return values[np.random.default_rng(seed).choice(len(values), FIT_SPOTS, replace=False)]


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of unit variance, so that starts from k-means see a rare domain beside a gradient over the whole tissue."""
    spread = values.std(axis=0)
    kept = spread > _ROUNDING * spread.max(initial=0)
    return (values[:, kept] - values[:, kept].mean(axis=0)) / spread[kept] if kept.any() else values


def _clusters(
    values: NDArray[np.float64], method: Method, n_domains: int, seed: int, n_seeds: int
) -> tuple[list[NDArray[np.integer]], int]:
    """Clusters for each seed, and the place of those that fit best."""
    make, values = (_mixture, _scaled(values)) if method == "mixture" else (_kmeans, values)
    fitted = [make(n_domains, one, N_STARTS).fit(_some(values, one)) for one in range(seed, seed + n_seeds)]
    best = int(np.argmax([model.score(values) for model in fitted]))
    return [model.predict(values) for model in fitted], best


def _suggested(values: NDArray[np.float64], seed: int) -> tuple[int, dict[str, float]]:
    """The number of domains with the best criterion, and the criterion of all that were tried."""
    values, n_independent = _scaled(values), len(values) / _SPOTS_OF_NICHE
    numbers = range(2, min(MOST_DOMAINS, len(values)) + 1)
    criterion = {}
    for number in numbers:
        mixture = _mixture(number, seed, n_starts=2).fit(_some(values, seed))
        criterion[number] = mixture.score(values) * n_independent - mixture._n_parameters() / 2 * np.log(n_independent)
    best = max(criterion, key=criterion.__getitem__)
    return best, {str(number): float(value) for number, value in criterion.items()}  # keys of a file are text


def _leiden(values: NDArray[np.float64], resolution: float, seed: int, n_seeds: int) -> list[NDArray[np.integer]]:
    """Clusters of the graph of most similar niches."""
    import scanpy as sc
    from anndata import AnnData

    if importlib.util.find_spec("igraph") is None:
        raise ImportError("Leiden needs igraph: pip install igraph; or pass n_domains=...")
    graph = AnnData(obsm={"niche": values.astype(np.float32)})
    sc.pp.neighbors(graph, n_neighbors=min(N_NEIGHBORS, len(values) - 1), use_rep="niche", random_state=seed)
    found = []
    for one in range(seed, seed + n_seeds):
        sc.tl.leiden(graph, resolution, random_state=one, flavor="igraph", n_iterations=2, directed=False)
        found.append(graph.obs["leiden"].cat.codes.to_numpy())
    return found


def voted(labels: NDArray[np.integer], patches: Any) -> NDArray[np.integer]:
    """The most frequent label of each patch."""
    numbers = np.unique(labels, return_inverse=True)[1]
    return np.asarray(patches @ np.eye(numbers.max() + 1, dtype=np.float32)[numbers]).argmax(axis=1)


def _named(labels: NDArray[np.integer]) -> pd.Categorical:
    """Labels as names, "1" being the largest cluster."""
    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.intp)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return pd.Categorical.from_codes(rank[numbers], [str(number + 1) for number in range(len(sizes))])
