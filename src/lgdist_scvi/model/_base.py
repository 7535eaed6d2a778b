"""What all parts of the model stand on: its module, its data, and the checks before anything is read."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from scvi.model.base import BaseModelClass

from lgdist_scvi._checks import check_session
from lgdist_scvi._compat import ForgettingMixin
from lgdist_scvi._constants import REGISTRY_KEYS
from lgdist_scvi._quiet import quiet
from lgdist_scvi.data._counts import check_counts
from lgdist_scvi.data._entries import listing
from lgdist_scvi.data._genes import validate_genes
from lgdist_scvi.data._neighbors import library_codes
from lgdist_scvi.data._validation import validate_setup
from lgdist_scvi.data._view import SpotView
from lgdist_scvi.module._use import refuse_while_trained

from ._guards import warn_if_unlike
from ._options import N_SAMPLES, Reading

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._registered import RegisteredManager
    from lgdist_scvi.module._lgdist import LGDiSTModule


class LGDiSTBase(ForgettingMixin, BaseModelClass):
    """State of a model, and views of its data."""

    module: LGDiSTModule
    registry_: dict[str, Any]
    zeros_missing_: bool
    n_rounds_: int
    seed_: int
    held_out_: float
    """Share of the entries that training has held out."""
    trained_digest_: str
    """Hash of the counts of the last training."""
    trained_spots_: NDArray[np.uint64]
    """Fingerprints of some spots of all trainings."""
    trained_entries_: NDArray[np.uint64]
    """Fingerprints of some of their entries."""
    history_: dict[str, dict[str, dict[str, list[float]]]]
    """Losses of every phase that was trained, by metric."""

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Name of other models' method; an error that names ours."""
        raise NotImplementedError(
            "LGDiST has no get_normalized_expression; its expected expression is get_completed_expression(), and "
            'get_completed_expression(scale="rate") gives shares of the depth, as library_size=1 does elsewhere.'
        )

    def differential_abundance(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Name of other models' method; an error that names ours."""
        raise NotImplementedError(
            "LGDiST has no differential_abundance; differential_expression(groupby=...) compares the expression of groups of spots."
        )

    def _view(self, adata: AnnData | None = None, share: NDArray | None = None) -> SpotView:
        """What may be seen of data, by default those of the model; other data have been checked."""
        own = adata is None or adata is self.adata
        with quiet():
            manager = self._up_to_date_manager(self.adata if own else adata, own=own)
        if own:
            # The AnnData may have been normalised or filtered since registration.
            validate_genes(self._gene_names(), manager.adata)
            setup = manager.registry["setup_args"]
            keys = (setup[name] for name in ("layer", "observed_layer", "size_factor_key", "library_key"))
            check_counts(manager.adata, *keys, training=False)
        return SpotView.from_manager(manager, zeros_missing=self.zeros_missing_, share=share)

    def _up_to_date_manager(self, adata: AnnData, *, own: bool) -> RegisteredManager:
        """Manager of data that are as they were registered. What is not the model's own is registered anew if it has changed."""
        manager = self.adata_manager if own else self.get_anndata_manager(adata)
        if manager is None:
            manager = self.adata_manager.transfer_fields(adata)
            self._register_manager_for_instance(manager)
        elif manager.has_other_spots:
            if own:
                self._validate(adata)
            manager.renew()
        elif changes := manager.changes():
            if own:
                raise ValueError(
                    f"{', '.join(changes)} since setup_anndata, and the model would mix old and new data. Set it back; or call "
                    "setup_anndata again and train a new model; or pass adata=model.adata.copy() to have the trained model "
                    "complete what is there now."
                )
            manager.renew()
        return manager

    def _validate(self, adata: AnnData) -> None:
        setup = self.adata_manager.registry["setup_args"]
        validate_genes(self._gene_names(), adata)
        validate_setup(adata, **{k: v for k, v in setup.items() if k != "neighbors_key"}, query=True)

    def _trained_view(
        self, adata: AnnData | None, *, diffusion: bool, use_image: bool = True
    ) -> tuple[AnnData, SpotView]:
        """Check model and data, and read the visible part of the data."""
        self._check_trained(diffusion=diffusion)
        adata = self.adata if adata is None else adata
        if adata is not self.adata:
            self._validate(adata)
        share = self.module.share.cpu().numpy()
        view = self._view(adata, share)
        if adata is not self.adata:
            warn_if_unlike(view, share)
        view.image_mask &= use_image
        return adata, view

    def _placed(self, adata: AnnData) -> tuple[NDArray, NDArray[np.intp]]:
        """Positions of the spots, and the numbers of their sections."""
        setup = self.adata_manager.registry["setup_args"]
        key = setup["library_key"]
        section = library_codes(None if key is None else adata.obs[key], adata.n_obs)
        return np.asarray(adata.obsm[setup["spatial_key"]], dtype=np.float64), section

    @property
    def _diffuses(self) -> bool:
        """Whether the diffusion is trained and drawn from by default: where nothing else knows the tissue, or where it was asked for."""
        return self.module.field is None or self.n_rounds_ > 1

    def _reading(self, n_samples: int | None = None, **options: Any) -> Reading:
        """Options of a read-out, with the default number of samples of this model."""
        if n_samples is None:
            n_samples = N_SAMPLES if self._diffuses else 0
        known = [field.name for field in fields(Reading)]
        if unknown := [name for name in options if name not in known]:
            raise TypeError(
                f"A completion has no option {listing(unknown)} (options: {listing(known, 99)}); correct the name."
            )
        return Reading(n_samples, **options)

    def _check_trained(self, *, diffusion: bool) -> None:
        check_session()
        refuse_while_trained(self.module)
        needed = {"autoencoder": "train"} | ({"diffusion": "train_diffusion"} if diffusion else {})
        for phase, method in needed.items():
            if phase not in self.history_:
                hint = " (or pass n_samples=0 for the autoencoder's own prediction)" if phase == "diffusion" else ""
                raise RuntimeError(f"The {phase} has not been trained: call model.{method}() first{hint}.")

    def _gene_names(self) -> NDArray:
        # From the registration: the AnnData may have lost genes since.
        fields = self.registry_["field_registries"]
        return np.asarray(fields[REGISTRY_KEYS.X]["state_registry"]["column_names"])
