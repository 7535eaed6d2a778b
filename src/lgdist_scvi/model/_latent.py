"""Latent representations of spots: the state of a spot, its niche, and the code of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lgdist_scvi._checks import check_choice, check_flag, check_whole
from lgdist_scvi._constants import Keys
from lgdist_scvi.data._areas import patches_around

from ._alignment import batch_shifts
from ._base import LGDiSTBase
from ._options import BATCH_SIZE, Reading, row_numbers
from ._reader import Reader
from ._representations import loading_axes, principal_components

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

Kind = Literal["state", "niche", "code"]

NICHE_SPOTS = 19
"""Spots whose states make a niche: on a hexagonal grid the spot and two rings around it."""
NICHE_COMPONENTS = 12
"""Numbers that a niche is described by. Fewer lose thin layers, more are noise."""


class LatentMixin(LGDiSTBase):
    """Latent representations."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int = BATCH_SIZE,
        *,
        kind: Kind = "state",
        aligned: bool = False,
        silent: bool = False,
    ) -> NDArray[np.float32]:
        """Representation of every spot, to be clustered or drawn, from all observed entries of the spot and its neighbourhood.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_completed_expression`.
        kind
            "state": the spot's own state, square roots of its expected expression over the mean of each gene, along the axes of the
            latent field; clusters of it are cell types or kinds of spots. "niche": means over the spot and the 18 spots of its section
            nearest to it of square roots of expected expression, in principal components; clusters of it are domains
            (:func:`lgdist_scvi.tl.domains`). "code": the code of the network, which the decoder reads, for work on the network
            itself. Without a latent field, codes take the place of both roots.
        aligned
            Subtract from states and niches what sets each batch (``batch_key``, else the sections) apart in all kinds of tissue alike:
            one shift per batch. What is different in one kind of tissue, and what a batch has more of, stays. Completed expression does
            not change.
        silent
            Show no progress bar.

        Returns
        -------
        States ``(n_spots, n_factors)``, niches ``(n_spots, n_components)``, at most 12, or codes ``(n_spots, n_latent)``; no unit. To be
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
        check_flag(aligned=aligned, silent=silent)
        check_whole(1, batch_size=batch_size)
        if aligned and kind == "code":
            raise ValueError("aligned=True needs kind='state' or kind='niche'.")
        adata, view = self._trained_view(adata, diffusion=False)
        rows = row_numbers(indices, adata)
        if kind == "code":
            return self._codes(view, rows, batch_size)
        if kind == "state" and not aligned:
            return self._coordinates(view, rows, batch_size, silent)[0]
        return self._representations(adata, view, [kind], aligned, batch_size, silent)[0][rows]

    def add_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        aligned: bool = False,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> None:
        """Write the states and the niches of all spots to ``obsm["X_lgdist"]`` and ``obsm["X_lgdist_niche"]``.

        The first is for cell types or kinds of spots, the second for domains.

        Parameters
        ----------
        adata, aligned, batch_size, silent
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
        check_flag(aligned=aligned, silent=silent)
        adata, view = self._trained_view(adata, diffusion=False)
        state, niche = self._representations(adata, view, ["state", "niche"], aligned, batch_size, silent)
        adata.obsm[Keys.LATENT], adata.obsm[Keys.NICHE] = state, niche

    def _codes(self, view: SpotView, rows: NDArray[np.int64], batch_size: int) -> NDArray[np.float32]:
        return Reader(self.module, view, Reading(n_samples=0, batch_size=batch_size)).codes(rows)

    def _coordinates(
        self, view: SpotView, rows: NDArray[np.int64], batch_size: int, silent: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """States of some spots, and coordinates whose means make niches."""
        field = self.module.field
        if field is None:
            codes = self._codes(view, rows, batch_size)
            return codes, codes
        axes = loading_axes(field.loadings.cpu().numpy())
        # All genes weigh alike in a state; in a mean of many spots the more abundant tell more.
        both = np.hstack([axes / np.sqrt(self.module.share.cpu().numpy()[:, None]), axes])
        found = np.empty((len(rows), both.shape[1]), dtype=np.float32)
        reader = Reader(self.module, view, Reading(scale="rate", batch_size=batch_size))
        for part in reader.batches(rows, silent=silent):
            found[part.place] = np.sqrt(part.values) @ both
        state, roots = map(np.ascontiguousarray, np.hsplit(found, 2))
        return state, roots

    def _representations(
        self, adata: AnnData, view: SpotView, kinds: Sequence[str], aligned: bool, batch_size: int, silent: bool
    ) -> list[NDArray[np.float32]]:
        """States and niches of all spots, those that are asked for."""
        state, roots = self._coordinates(view, np.arange(view.n_spots), batch_size, silent)
        patches = patches_around(*self._placed(adata), NICHE_SPOTS)

        def around(values: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(patches @ values / patches.sum(axis=1), dtype=np.float32)

        found = []
        for kind in kinds:
            values = state if kind == "state" else roots
            if aligned:
                # Means of neighbours have less noise, so that kinds of tissue are told apart better; a shift is the same in both.
                values = values - batch_shifts(around(values), view.section)[view.section]
            found.append(values if kind == "state" else principal_components(around(values), NICHE_COMPONENTS))
        return found
