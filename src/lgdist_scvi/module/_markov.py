"""Gaussian Markov fields over the tissue graph: solving, drawing, and the spectrum of the graph."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy import sparse

    from lgdist_scvi.data._tissue import Tissue

    from ._noise import Noise

ROUGHLY, EXACTLY = 1e-3, 1e-6
"""Tolerances: of one of many steps, and of results, which must not depend on what else was solved with them."""
_ITERATIONS = 100
_NOTHING = 1e-20
# Keeps roots of nearly singular matrices real, relative to the largest entry.
_JITTER = 1e-4
# Of matrices with a unit diagonal; and the smallest diagonal.
_SINGULAR, _SMALLEST = 1e-5, 1e-12
# Matrices inverted at a time, which stay in the cache of a processor.
_BLOCK_MATRICES = 1024
_EXACT_SPOTS = 500
"""Spots up to which all eigenvalues of the Laplacian are computed."""
_PROBES, _LANCZOS_STEPS = 4, 40
# Times that the spread is averaged over each spot and its neighbours.
_SMOOTHINGS = 2


class Precision:
    """Posterior precision of the codes: that given the counts of each spot, and that of the field.

    Parameters
    ----------
    information
        Precision given the own counts of each spot, ``(n_spots, n_factors, n_factors)``.
    tissue
        Spots and their graph.
    stiffness, smoothness
        Strengths of the field, ``(n_factors,)``.
    """

    def __init__(
        self, information: torch.Tensor, tissue: Tissue, stiffness: torch.Tensor, smoothness: torch.Tensor
    ) -> None:
        self._information, self._tissue = information, tissue
        self._stiffness, self._smoothness = stiffness, smoothness
        local = information + torch.diag_embed(stiffness + smoothness * tissue.degree[:, None])
        self.local_covariance = inverse(local)
        """Covariance of the code of each spot given those of the others, ``(n_spots, n_factors, n_factors)``."""

    def __matmul__(self, codes: torch.Tensor) -> torch.Tensor:
        own = torch.bmm(self._information, codes[..., None])[..., 0]
        return own + self._stiffness * codes + self._smoothness * (self._tissue.smooth @ codes)

    def solve(self, target: torch.Tensor, start: torch.Tensor, tolerance: float = ROUGHLY) -> torch.Tensor:
        """Codes whose product with the precision is the target, by preconditioned conjugate gradients.

        Parameters
        ----------
        target, start
            Right-hand side and first guess, each ``(n_spots, n_factors)``.
        tolerance
            Norm of what remains, in units of that of the target.
        """
        codes, residual = start, target - self @ start
        scaled = self._scaled(residual)
        direction, size = scaled, (residual * scaled).sum()
        wanted = (tolerance**2 * (target * self._scaled(target)).sum()).clamp_min(_NOTHING)
        for _ in range(_ITERATIONS):
            if size <= wanted:
                break
            change = self @ direction
            step = size / (direction * change).sum().clamp_min(_NOTHING)
            codes, residual = codes + step * direction, residual - step * change
            scaled = self._scaled(residual)
            before, size = size, (residual * scaled).sum()
            direction = scaled + size / before * direction
        return codes

    def sample(self, noise: Noise) -> torch.Tensor:
        """A draw from the normal distribution with this precision and mean 0, ``(n_spots, n_factors)``.

        Noise whose covariance is the precision is solved for: that of the counts of each spot, of the spots and of the
        edges (perturb and optimise; Papandreou & Yuille 2010).

        Parameters
        ----------
        noise
            Standard normal numbers.
        """
        own, spots, edges = (part.to(self._information.device) for part in noise)
        drawn = torch.bmm(self._root, own[..., None])[..., 0] + self._stiffness.sqrt() * spots
        drawn = drawn + self._smoothness.sqrt() * (self._tissue.incidence @ edges)
        return self.solve(drawn, torch.zeros_like(drawn))

    def spread(self, draws: torch.Tensor) -> torch.Tensor:
        """Variance of what the neighbours of each spot say of its code, from draws, ``(n_spots, n_factors)``.

        With the covariance ``V`` given the neighbours it makes that of the posterior, ``V + V @ diag(spread) @ V``. It changes
        little from spot to spot, so few draws are enough, averaged over the surroundings.

        Parameters
        ----------
        draws
            Draws, ``(n_spots, n_draws, n_factors)``.
        """
        degree = self._tissue.degree[:, None]
        spread = torch.zeros_like(draws[:, 0])
        for draw in draws.unbind(dim=1):
            said = self._smoothness * (degree * draw - self._tissue.smooth @ draw)
            spread += said.square() / draws.shape[1]
        for _ in range(_SMOOTHINGS):
            # The Laplacian is the degree minus the links.
            spread = spread - (self._tissue.smooth @ spread) / (degree + 1)
        return spread

    @cached_property
    def _root(self) -> torch.Tensor:
        """Root of the precision given the own counts, the same for all draws."""
        largest = torch.diagonal(self._information, dim1=1, dim2=2).amax(dim=1, keepdim=True)
        jitter = torch.diag_embed((_JITTER * largest + 1e-6).expand(-1, self._information.shape[1]))
        return torch.linalg.cholesky_ex(self._information + jitter).L

    def _scaled(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.bmm(self.local_covariance, codes[..., None])[..., 0]


def inverse(matrices: torch.Tensor) -> torch.Tensor:
    """Inverses of positive definite matrices, ``(n_spots, n_factors, n_factors)``, finite also where single precision cannot tell them from singular ones."""
    inverses, little = torch.empty_like(matrices), _SINGULAR * torch.eye(matrices.shape[1], device=matrices.device)
    for part, result in zip(matrices.split(_BLOCK_MATRICES), inverses.split(_BLOCK_MATRICES), strict=True):
        scale = torch.diagonal(part, dim1=1, dim2=2).clamp_min(_SMALLEST).rsqrt()
        both = scale[:, :, None] * scale[:, None]
        # Without a check of the result, for which the CPU would wait.
        torch.mul(torch.linalg.inv_ex(part * both + little).inverse, both, out=result)
    return inverses


def spectrum(laplacian: sparse.csr_matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights with which ``sum(weights * f(nodes))`` is the trace of a function of the Laplacian.

    All eigenvalues of small graphs; for others by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    Parameters
    ----------
    laplacian
        Laplacian of the graph, ``(n_spots, n_spots)``.
    """
    n_spots = laplacian.shape[0]
    if n_spots <= _EXACT_SPOTS:
        nodes, weights = np.linalg.eigvalsh(laplacian.toarray().astype(np.float64)), np.ones(n_spots)
    else:
        generator, parts = np.random.default_rng(0), []
        for _ in range(_PROBES):
            parts.append(_lanczos(laplacian, generator.choice([-1.0, 1.0], n_spots)))
        nodes, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
        weights = weights * n_spots / _PROBES
    return torch.from_numpy(np.maximum(nodes, 0)).float(), torch.from_numpy(weights).float()


def _lanczos(laplacian: sparse.csr_matrix, probe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values of the Laplacian, and the share that each has in the probe."""
    basis = [probe / np.linalg.norm(probe)]
    diagonal, beside = [], []
    for step in range(_LANCZOS_STEPS):
        vector = laplacian @ basis[-1]
        diagonal.append(vector @ basis[-1])
        for known in basis:  # orthogonal to all, against rounding
            vector = vector - (known @ vector) * known
        length = np.linalg.norm(vector)
        if step == _LANCZOS_STEPS - 1 or length < 1e-8:
            break
        beside.append(length)
        basis.append(vector / length)
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors[0] ** 2
