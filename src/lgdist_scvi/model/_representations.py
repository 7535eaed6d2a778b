"""Coordinates in which spots are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Share of the largest variance below which a direction is rounding.
_ROUNDING = 1e-6


def loading_axes(loadings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal axes of what the latent field varies along, those of the largest changes of log rates first.

    Parameters
    ----------
    loadings
        Loadings, ``(n_genes, n_factors)``.

    Returns
    -------
    Axes ``(n_genes, n_factors)``; 0 where the loadings have fewer directions. They do not depend on the spots.
    """
    given = loadings.astype(np.float64)
    stretch, axes = _principal_axes(given.T @ given)
    return (given @ (axes * _inverse_roots(stretch))).astype(np.float32)


def principal_components(values: ArrayLike, n_components: int) -> NDArray[np.float32]:
    """Principal components.

    Parameters
    ----------
    values
        Values, ``(n_spots, n_dimensions)``.
    n_components
        Number of components at most.

    Returns
    -------
    Components ``(n_spots, n_components)`` in the unit of the values, those of the largest variance first.
    """
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    axes = _principal_axes(centred.T @ centred)[1]
    return (centred @ axes[:, :n_components]).astype(np.float32)


def _inverse_roots(variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """What gives each direction unit variance; 0 for those that are rounding."""
    kept = variance > _ROUNDING * variance.max(initial=1e-12)
    return np.where(kept, 1 / np.sqrt(np.where(kept, variance, 1)), 0)


def _principal_axes(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues in falling order, and eigenvectors whose largest element is positive, in columns."""
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return values, vectors * np.sign(vectors[largest, np.arange(len(values))])
