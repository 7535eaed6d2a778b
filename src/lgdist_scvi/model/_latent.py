"""Latent representations of spots: the code of the network, the state of a spot, and its niche."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lgdist_scvi._checks import check_choice, check_flag, check_whole
from lgdist_scvi._constants import Keys
from lgdist_scvi.data._areas import patches_around
from lgdist_scvi.module._field_codes import solve_field

from ._alignment import batch_shifts
from ._base import LGDiSTBase
from ._options import BATCH_SIZE, Reading, row_numbers
from ._reader import Reader
from ._representations import log_rate_coordinates, standardised_components

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

Kind = Literal["code", "state", "niche"]

NICHE_SPOTS = 19
"""Spots whose states make a niche: on a hexagonal grid the spot and two rings around it."""
NICHE_COMPONENTS = 15
"""Numbers that a niche is described by. Fewer lose thin layers, more are noise."""


class LatentMixin(LGDiSTBase):
    """Latent representations."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int = BATCH_SIZE,
        *,
        kind: Kind = "code",
        aligned: bool = False,
    ) -> NDArray[np.float32]:
        """Representation of every spot, from all observed entries of the spot and its neighbourhood.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_completed_expression`.
        kind
            "code": the code of the network, which the decoder reads. "state": the spot's own state, in which distances are those of
            the log rates of the latent field; clusters of it are cell types or kinds of spots. "niche": the mean state of the spot and
            the 18 spots of its section nearest to it, in standardised principal components; clusters of it are domains
            (:func:`lgdist_scvi.tl.domains`). Without a latent field, the code takes the place of the state.
        aligned
            Subtract from states and niches what sets each batch (``batch_key``, else the sections) apart in all kinds of tissue alike:
            one shift per batch. What is different in one kind of tissue, and what a batch has more of, stays. Completed expression does
            not change.

        Returns
        -------
        Codes ``(n_spots, n_latent)``, states ``(n_spots, n_factors)`` or niches ``(n_spots, n_components)``, at most 15; no unit. To be
        stored for example in ``adata.obsm["X_lgdist"]``.

        Raises
        ------
        MemoryError
            As :meth:`get_completed_expression`.
        RuntimeError
            If the autoencoder has not been trained.
        KeyError, TypeError, ValueError
            If an argument or `adata` does not fit the model.

        References
        ----------
        :cite:t:`cardenas2025lgdist`; "The latent space" of :doc:`/method`.

        Examples
        --------
        >>> adata.obsm["X_lgdist"] = model.get_latent_representation()
        >>> adata.obsm["X_lgdist_niche"] = model.get_latent_representation(kind="niche")
        """
        check_choice("kind", kind, get_args(Kind))
        check_flag(aligned=aligned)
        check_whole(1, batch_size=batch_size)
        if aligned and kind == "code":
            raise ValueError("aligned=True needs kind='state' or kind='niche'.")
        adata, view = self._trained_view(adata, diffusion=False)
        rows = row_numbers(indices, adata)
        if kind == "code":
            return self._codes(view, rows, batch_size)
        state = self._state(adata, view, batch_size, aligned)
        return (state if kind == "state" else self._niche(adata, state))[rows]

    def add_latent_representation(
        self, adata: AnnData | None = None, *, aligned: bool = False, batch_size: int = BATCH_SIZE
    ) -> None:
        """Write the states and the niches of all spots to ``obsm["X_lgdist"]`` and ``obsm["X_lgdist_niche"]``.

        The first is for cell types or kinds of spots, the second for domains.

        Parameters
        ----------
        adata, aligned, batch_size
            As in :meth:`get_latent_representation`.

        Raises
        ------
        MemoryError, RuntimeError, KeyError, TypeError, ValueError
            As :meth:`get_latent_representation`.

        Examples
        --------
        >>> model.add_latent_representation()
        >>> adata.obsm["X_lgdist_niche"].shape[0] == adata.n_obs
        True
        """
        adata, view = self._trained_view(adata, diffusion=False)
        state = self._state(adata, view, batch_size, aligned)
        adata.obsm[Keys.LATENT] = state
        adata.obsm[Keys.NICHE] = self._niche(adata, state)

    def _codes(self, view: SpotView, rows: NDArray[np.int64], batch_size: int) -> NDArray[np.float32]:
        return Reader(self.module, view, Reading(n_samples=0, batch_size=batch_size)).codes(rows)

    def _state(self, adata: AnnData, view: SpotView, batch_size: int, aligned: bool) -> NDArray[np.float32]:
        """States of all spots."""
        field = self.module.field
        if field is None:
            state = self._codes(view, np.arange(view.n_spots), batch_size)
        else:
            solve_field(self.module, view)
            state = log_rate_coordinates(view.field[:, 0], field.loadings.cpu().numpy())
        # Means of neighbours have less noise, so that kinds of tissue are told apart better; a shift is the same in both.
        return state - batch_shifts(self._around(adata, state), view.section)[view.section] if aligned else state

    def _niche(self, adata: AnnData, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Niches of all spots."""
        return standardised_components(self._around(adata, state), NICHE_COMPONENTS)

    def _around(self, adata: AnnData, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean state of each spot and those nearest to it."""
        patches = patches_around(*self._placed(adata), NICHE_SPOTS)
        return np.asarray(patches @ state / patches.sum(axis=1), dtype=np.float32)
