"""Prediction of expression from the image alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from lgdist_scvi._checks import check_choice
from lgdist_scvi._constants import REGISTRY_KEYS
from lgdist_scvi.data._fields import check_embeddings
from lgdist_scvi.data._hidden import Hidden
from lgdist_scvi.data._neighbors import library_codes, spatial_graph
from lgdist_scvi.data._validation import validate_places
from lgdist_scvi.data._view import SpotView

from ._base import LGDiSTBase
from ._options import BATCH_SIZE, N_STEPS, gene_numbers
from ._reader import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


DepthlessScale = Literal["log1p", "rate"]


class PredictionMixin(LGDiSTBase):
    """Prediction without counts."""

    def predict_expression(
        self,
        adata: AnnData,
        gene_list: Sequence[str] | None = None,
        *,
        n_samples: int | None = None,
        n_steps: int = N_STEPS,
        return_std: bool = False,
        scale: DepthlessScale = "log1p",
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        """Predict expression at places with only an image.

        Use it for a section that was imaged but not sequenced, or for a grid of places finer than the spots. The model must
        have been trained with images of similar sections. Each place is predicted from its image and those of its nearest
        places; counts in `adata` are not read. To use measured spots around the places as well, put both into one AnnData,
        hide the places in ``observed_layer`` and call :meth:`get_completed_expression`.

        Parameters
        ----------
        adata
            Places with positions and image embeddings under the keys of the setup of the model, and its ``library_key`` if it
            has one. Genes are not needed.
        gene_list, n_samples, n_steps, return_std
            As in :meth:`get_completed_expression`.
        scale
            "log1p": log1p of counts per 10,000. "rate": share of a spot's depth.
        seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Table ``(n_places, n_genes)`` in the unit of `scale`, and with `return_std` one of the standard deviations.

        Raises
        ------
        MemoryError
            If `n_samples` codes of a minibatch would take more than half of the available memory.
        ValueError
            If the model was trained without images, a place has no image, the embeddings were computed with other settings,
            or an argument is out of range.
        KeyError, TypeError
            If positions or embeddings are missing or of an unsupported type.
        RuntimeError
            If the model has not been trained.
        FloatingPointError
            If a predicted value is not finite.

        Examples
        --------
        >>> places = lgdist_scvi.datasets.simulated_tissue(n_spots=60, seed=1)  # only the image is read
        >>> model.predict_expression(places, gene_list=["gene_1", "gene_2"]).shape
        (60, 2)
        """
        check_choice("scale", scale, get_args(DepthlessScale))
        reading = self._reading(
            n_samples, n_steps=n_steps, return_std=return_std, scale=scale, seed=seed, batch_size=batch_size
        )
        self._check_trained(diffusion=reading.n_samples > 0)
        setup = self.adata_manager.registry["setup_args"]
        if setup["image_key"] is None:
            raise ValueError(
                "The model was trained without images: register images with setup_anndata(..., image_key=...) and train a new model."
            )
        state = self.adata_manager.get_state_registry(REGISTRY_KEYS.IMAGE)
        keys = setup["spatial_key"], setup["library_key"], setup["image_key"]
        image = validate_places(adata, *keys, len(state["column_names"]))
        check_embeddings(adata, setup["image_key"], state)
        libraries = adata.obs[setup["library_key"]] if setup["library_key"] else None
        connectivities, distances = spatial_graph(
            np.asarray(adata.obsm[setup["spatial_key"]]), libraries, setup["n_neighbors"]
        )
        shape = (adata.n_obs, self.adata.n_vars)
        view = SpotView(
            sparse.csr_matrix(shape, dtype=np.float32),
            Hidden.all(shape),
            np.ones(adata.n_obs, dtype=np.float32),
            library_codes(libraries, adata.n_obs),
            np.zeros(adata.n_obs, dtype=np.intp),
            connectivities,
            distances,
            setup["n_neighbors"],
            image,
            self.module.share.cpu().numpy(),
        )
        genes = gene_numbers(gene_list, self.adata)
        rows = np.arange(adata.n_obs)
        predicted = Reader(self.module, view, reading).read(rows, None if gene_list is None else genes, silent=silent)
        labels = {"index": adata.obs_names, "columns": self.adata.var_names[genes]}
        mean = pd.DataFrame(predicted.values, **labels)
        return (mean, pd.DataFrame(predicted.std, **labels)) if return_std else mean
