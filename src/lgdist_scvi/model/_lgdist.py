"""LGDiST as a scvi-tools model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi.data.fields import LayerField, NumericalObsField, ObsmField

from lgdist_scvi._checks import check_seed, check_session, check_whole
from lgdist_scvi._constants import REGISTRY_KEYS
from lgdist_scvi._memory import require_memory
from lgdist_scvi._quiet import quiet
from lgdist_scvi.data._fields import GroupField, ImageField
from lgdist_scvi.data._genes import CountsField, validate_genes
from lgdist_scvi.data._graph_field import SpatialGraphField
from lgdist_scvi.data._registered import RegisteredManager
from lgdist_scvi.data._validation import validate_setup
from lgdist_scvi.module._lgdist import LGDiSTModule
from lgdist_scvi.module._likelihoods import LIKELIHOODS
from lgdist_scvi.train._runner import relative_size
from lgdist_scvi.train._seeds import seeded

from ._base import LGDiSTBase
from ._completion import CompletionMixin
from ._correlation import CorrelationMixin
from ._differential import DifferentialMixin
from ._evaluation import EvaluationMixin
from ._guards import NO_ENTRIES
from ._latent import LatentMixin
from ._layers import LayersMixin
from ._prediction import PredictionMixin
from ._saving import SavingMixin
from ._spatialdata import SpatialDataMixin
from ._training import TrainingMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scvi.data.fields import AnnDataField


MOST_FACTORS = 24


class LGDiST(
    TrainingMixin,
    CompletionMixin,
    LatentMixin,
    EvaluationMixin,
    LayersMixin,
    PredictionMixin,
    CorrelationMixin,
    DifferentialMixin,
    SpatialDataMixin,
    SavingMixin,
    LGDiSTBase,
):
    """Latent gene diffusion for spatial transcriptomics completion (LGDiST, arXiv 2509.01864).

    A neighbourhood transformer encodes a spot, with part of its entries hidden, and its neighbours; a decoder turns the code into
    rates of all genes; a latent field over the tissue is averaged with them. In the published convention
    (:data:`~lgdist_scvi.PUBLISHED`) there is no field, and a diffusion model draws the code that the spot would have with everything
    visible.

    Parameters
    ----------
    adata
        Annotated spots, registered with :meth:`setup_anndata`.
    zeros_missing
        Treat every zero as an unobserved entry. By default an observed zero is evidence of a low rate.
    n_rounds
        Number of times the diffusion is trained; from the second on, the completed spots provide the clean codes.
    seed
        Seed of the weights, of the held-out entries and of the training.
    **module_kwargs
        Sizes and options of :class:`~lgdist_scvi.LGDiSTModule`: ``n_latent``, ``n_hidden``, ``loss``, ``condition``, ...
        For ``n > 3000`` spots, ``n_factors`` defaults to ``20 * (n / 3000)**0.5``, at most 24.

    Raises
    ------
    MemoryError
        If the weights would take more than half of the available memory.
    RuntimeError
        If PyTorch computes in another precision, or without values, by default.
    TypeError
        If an option is unknown.
    ValueError
        If `adata` is not registered, or an option is out of range or incompatible with another.

    Notes
    -----
    :data:`lgdist_scvi.PUBLISHED` holds the options of the published convention.

    References
    ----------
    :cite:t:`cardenas2025lgdist`. :doc:`/method` describes the model, and where and why it departs from the paper.

    Examples
    --------
    >>> import lgdist_scvi
    >>> adata = lgdist_scvi.datasets.simulated_tissue(n_spots=200, n_genes=50)
    >>> lgdist_scvi.LGDiST.setup_anndata(adata, layer="counts", library_key="library_id")
    >>> model = lgdist_scvi.LGDiST(adata)
    >>> model.train()
    >>> adata.layers["lgdist"] = model.get_completed_expression()
    >>> adata.obsm["X_lgdist"] = model.get_latent_representation()
    """

    _module_cls = LGDiSTModule

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        zeros_missing: bool = False,
        n_rounds: int = 1,
        seed: int = 0,
        **module_kwargs: Any,
    ) -> None:
        check_session()
        try:
            super().__init__(adata)
        except ValueError as error:
            raise ValueError(
                "Register the very AnnData that you pass, with LGDiST.setup_anndata(adata, ...) first: a copy is registered apart "
                f"from its original. (scvi-tools says: {error})"
            ) from error
        n_spots = self.summary_stats.n_cells
        # Saved with the model, so that it still loads if a later version has other defaults.
        known = inspect.signature(self._module_cls).parameters
        fixed = ("n_genes", "n_image", "target_genes")
        defaults = {n: p.default for n, p in known.items() if n not in fixed}
        defaults["n_factors"] = min(MOST_FACTORS, round(defaults["n_factors"] * relative_size(n_spots) ** 0.5))
        module_kwargs = defaults | module_kwargs
        # Of an unknown loss the module complains.
        if zeros_missing and getattr(LIKELIHOODS.get(module_kwargs["loss"]), "zeros_count", False):
            raise ValueError("zeros_missing=True needs loss='log', because the likelihood of counts needs zeros.")
        check_whole(1, n_rounds=n_rounds)
        check_seed(seed)
        # Of NumPy they would be saved as other kinds.
        n_rounds, seed = int(n_rounds), int(seed)
        _require_memory(self.summary_stats.n_vars, **module_kwargs)
        with seeded(seed):
            self.module = self._module_cls(
                n_genes=self.summary_stats.n_vars,
                n_image=self.summary_stats.get(f"n_{REGISTRY_KEYS.IMAGE}", 0),
                target_genes=self._target_genes(),
                **module_kwargs,
            )
        self.zeros_missing_, self.n_rounds_, self.seed_ = zeros_missing, n_rounds, seed
        self.held_out_ = 0.0
        self.trained_digest_, self.trained_spots_ = "", np.empty(0, dtype=np.uint64)
        self.trained_entries_ = NO_ENTRIES
        self.history_ = {}
        options = ", ".join(f"{name}: {value}" for name, value in module_kwargs.items())
        self._model_summary_string = f"LGDiST with {self.summary_stats.n_vars} genes, {options}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        *,
        spatial_key: str = "spatial",
        library_key: str | None = None,
        batch_key: str | None = None,
        image_key: str | None = None,
        observed_layer: str | None = None,
        size_factor_key: str | None = None,
        target_genes_key: str | None = None,
        neighbors_key: str | None = None,
        n_neighbors: int = 6,
        max_distance: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Register raw counts, positions and optional data.

        Everything is checked here, before any training. Writes the spatial graph to ``adata.obsp``. Spots and genes
        without a count are completed, with a warning: the spots from their surroundings, the genes as close to zero.

        Parameters
        ----------
        adata
            Annotated spots.
        layer
            Layer with raw counts, whole numbers; ``X`` by default.
        spatial_key
            Key of the positions in ``obsm``, in any unit.
        library_key
            Column of ``obs`` with the section of every spot. Neighbourhoods never cross sections.
        batch_key
            Column of ``obs`` with groups of spots that share an average profile; by default each library.
        image_key
            Key of image embeddings in ``obsm``, as :func:`lgdist_scvi.pp.image_embeddings` writes them; a row of NaN
            for a spot without an image.
        observed_layer
            Boolean layer, True where the entry was observed. Counts where it is False are never read. By default
            every entry is observed, zeros included.
        size_factor_key
            Column of ``obs`` with the depth (counts over the whole transcriptome) of the spots; by default the sum of
            the observed entries. 0 where it is unknown, which only a spot without a count may have.
        target_genes_key
            Boolean column of ``var``, True for the genes that matter most.
        neighbors_key
            Prefix of your own graph in ``obsp``, in the format of ``squidpy``; by default a graph is built.
        n_neighbors
            Neighbours per spot; of your own graph the nearest, and ties are broken by the names of the spots.
        max_distance
            Largest distance of neighbours, in the unit of the positions (micrometres for Xenium and MERSCOPE); by default 1.5
            times the median distance to the last of `n_neighbors` in each section.
        **kwargs
            Used by scvi-tools when it loads a saved model.

        Raises
        ------
        KeyError, TypeError, ValueError
            If data are missing or invalid; the message names the culprit and the remedy.

        References
        ----------
        Spatial graph: :cite:p:`palla2022squidpy`, "What the model sees" of :doc:`/method`.

        Examples
        --------
        >>> lgdist_scvi.LGDiST.setup_anndata(adata, layer="counts", library_key="library_id", image_key="X_image")
        >>> model = lgdist_scvi.LGDiST(adata)
        """
        # Must come first: it saves every local variable with the model as an argument.
        setup_method_args = cls._get_setup_method_args(**locals())
        source = kwargs.get("source_registry")
        if source is not None:
            validate_genes(source["field_registries"][REGISTRY_KEYS.X]["state_registry"]["column_names"], adata)
        arguments = setup_method_args["setup_args"]
        # The keys of an enumeration would be saved as code.
        arguments |= {name: str.__str__(key) for name, key in arguments.items() if isinstance(key, str)}
        checked = {name: value for name, value in arguments.items() if name != "neighbors_key"}
        validate_setup(adata, **checked, query=source is not None)
        manager = RegisteredManager(fields=_fields(**arguments), setup_method_args=setup_method_args)
        with quiet():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def get_normalized_function_name(self) -> str:
        """Name of the method that scvi-tools calls for normalised expression."""
        return "get_completed_expression"

    def _target_genes(self) -> NDArray[np.bool_] | None:
        key = self.adata_manager.registry["setup_args"]["target_genes_key"]
        if key not in self.adata.var:  # None, or a model loaded with other spots: its weights include the target genes
            return None
        return self.adata.var[key].to_numpy(dtype=bool)


def _require_memory(n_genes: int, **sizes: Any) -> None:
    """Refuse sizes whose weights would not fit; of what is no size the module complains."""
    names = ("n_latent", "n_factors", "n_diffusion_steps")
    parts = (("n_layers", "n_hidden"), ("n_denoiser_layers", "n_denoiser_hidden"))
    if any(not isinstance(sizes[name], int) or sizes[name] < 0 for name in (*names, *parts[0], *parts[1])):
        return
    n_latent, n_factors, n_steps = (sizes[name] for name in names)
    n_numbers = n_genes * n_factors + 8 * n_steps
    for depth, width in parts:
        # Besides its weights, each layer takes objects of Python.
        n_numbers += sizes[depth] * (12 * sizes[width] ** 2 + 10_000) + (n_genes + n_latent) * sizes[width]
    require_memory(4 * n_numbers, "The model", "Pass smaller n_hidden, n_layers, n_latent, ... to LGDiST.")


def _fields(
    layer: str | None,
    spatial_key: str,
    library_key: str | None,
    batch_key: str | None,
    image_key: str | None,
    observed_layer: str | None,
    size_factor_key: str | None,
    neighbors_key: str | None,
    n_neighbors: int,
    max_distance: float | None = None,
    **_: Any,
) -> list[AnnDataField]:
    """Fields that are registered; arguments as of :meth:`LGDiST.setup_anndata`."""
    fields = [
        CountsField(REGISTRY_KEYS.X, layer, is_count_data=False),
        ObsmField(REGISTRY_KEYS.SPATIAL, spatial_key, is_count_data=False),
        SpatialGraphField(spatial_key, library_key, neighbors_key, n_neighbors, max_distance),
    ]
    for key, column in {REGISTRY_KEYS.LIBRARY: library_key, REGISTRY_KEYS.BATCH: batch_key}.items():
        if column is not None:
            fields.append(GroupField(key, column))
    if observed_layer is not None:
        fields.append(LayerField(REGISTRY_KEYS.OBSERVED, observed_layer, is_count_data=False))
    if size_factor_key is not None:
        fields.append(NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR, size_factor_key))
    if image_key is not None:
        fields.append(ImageField(REGISTRY_KEYS.IMAGE, image_key))
    return fields
