"""Fields of scvi-tools' AnnDataManager: groups and image embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi.data.fields import CategoricalObsField, ObsmField

from ._names import are_plain, check_sortable, names_of

if TYPE_CHECKING:
    from anndata import AnnData


class GroupField(CategoricalObsField):
    """Column of ``obs`` that groups spots; new data may have new groups, since nothing is learnt per group."""

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Register the groups of new data beside the known ones; arguments as in scvi-tools.

        Raises
        ------
        TypeError
            If the names of new and known groups cannot be sorted together.
        """
        key, known = self._original_attr_key, state_registry[self.CATEGORICAL_MAPPING_KEY]
        if not are_plain(names_of(adata_target.obs[key])):
            # Known ones are text if the model was saved.
            return self.register_field(adata_target)
        check_sortable(adata_target.obs[key], key, f"{self.registry_key}_key", known)
        return super().transfer_field(state_registry, adata_target, **{**kwargs, "extend_categories": True})

    @classmethod
    def saved(cls, state_registry: dict) -> dict[str, Any]:
        """The state as it is saved: names such as dates and intervals are written as text."""
        names = state_registry.get(cls.CATEGORICAL_MAPPING_KEY)
        if names is None or are_plain(names):
            return state_registry
        return {**state_registry, cls.CATEGORICAL_MAPPING_KEY: np.array([str(name) for name in names], dtype=object)}


class ImageField(ObsmField):
    """Image embeddings in ``obsm``, which must be computed in the same way for all data of a model."""

    MADE_KEY = "made"

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Register the embeddings and, if :func:`~lgdist_scvi.pp.image_embeddings` computed them, its settings."""
        return super().register_field(adata) | {self.MADE_KEY: _made(adata, self.attr_key)}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Check that the embeddings of new data were computed like those of the model; arguments as in scvi-tools.

        Raises
        ------
        ValueError
            If the number of features or the settings differ.
        """
        check_embeddings(adata_target, self.attr_key, state_registry)
        made = {self.MADE_KEY: state_registry[self.MADE_KEY]}
        return super().transfer_field(state_registry, adata_target, **kwargs) | made


def check_embeddings(adata: AnnData, key: str, state_registry: dict) -> None:
    """Check that image embeddings were computed like those that a model was trained with.

    Parameters
    ----------
    adata
        Annotated spots.
    key
        Key of the embeddings in ``obsm`` and of their settings in ``uns``.
    state_registry
        State of the model's :class:`ImageField`.

    Raises
    ------
    ValueError
        If the settings of both are known and differ.
    """
    expected, found = state_registry[ImageField.MADE_KEY], _made(adata, key)
    if expected and found and dict(expected) != found:
        raise ValueError(
            f"adata.obsm[{key!r}] was computed with {found}, but that of the model with {dict(expected)}; compute it in the "
            "same way with lgdist_scvi.pp.image_embeddings."
        )


def _made(adata: AnnData, key: str) -> dict[str, Any] | None:
    """Settings that determine the embeddings; None if the user computed them."""
    made, names = adata.uns.get(key), ("model", "patch_size", "unit", "n_pixels", "standardize")
    if not isinstance(made, Mapping) or "model" not in made:
        return None
    # Values read from a file are NumPy scalars.
    known = {name: made[name] for name in names if name in made}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}
