"""Image embeddings of spots."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from lgdist_scvi._checks import check_name, check_whole
from lgdist_scvi._compat import track
from lgdist_scvi._constants import PACKAGE, Keys
from lgdist_scvi._memory import require_memory
from lgdist_scvi.data._slide_sources import PATCH_SIZE, open_slides

from ._descriptor import StainDescriptor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

# Side of the patches for a model without the attribute `n_pixels`.
_N_PIXELS = 224
# Keeps constant features at 0.
_LEAST_STD = 1e-6


def image_embeddings(
    data: AnnData | SpatialData,
    model: str | nn.Module | Callable[[torch.Tensor], ArrayLike] | None = None,
    *,
    image: str | Path | NDArray | Mapping[str, str | Path | NDArray] | None = None,
    image_key: str | None = None,
    library_key: str | None = None,
    table_key: str = "table",
    spatial_key: str = "spatial",
    patch_size: float = PATCH_SIZE,
    unit: Literal["spot", "um"] = "spot",
    n_pixels: int | None = None,
    timm_kwargs: Mapping[str, Any] | None = None,
    pooling: Literal["class", "class_mean"] | None = None,
    standardize: bool = True,
    scale: float = 1.0,
    spot_diameter: float | None = None,
    microns_per_pixel: float | None = None,
    key_added: str = Keys.IMAGE,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    silent: bool = False,
) -> None:
    """Embed the image around every spot.

    A square patch is cut around each spot, resampled and embedded. Large images are read piece by piece. Writes
    ``obsm[key_added]``, float32 of shape ``(n_spots, n_features)``, and its settings to ``uns[key_added]``, for
    :meth:`LGDiST.setup_anndata(..., image_key=key_added) <lgdist_scvi.LGDiST.setup_anndata>`.

    Parameters
    ----------
    data
        Annotated spots with positions in pixels of the full-resolution image, or a SpatialData object whose table
        annotates circles or polygons; changed in place.
    model
        None for :class:`~lgdist_scvi.pp.StainDescriptor`, which needs no weights. A name for a pretrained model of
        `timm <https://huggingface.co/docs/timm>`_, without its classifier and with its own input normalisation
        (``pip install 'lgdist-scvi[image]'``); ``"hf-hub:OWNER/NAME@REVISION"`` takes one revision from the Hugging Face hub. A module or any callable that takes patches,
        ``(n_patches, 3, n_pixels, n_pixels)``, red, green and blue from 0 to 1, and returns features,
        ``(n_patches, n_features)``.
    image
        Image file (TIFF, PNG, JPEG) or array, ``(height, width)`` or ``(height, width, n_channels)``, of brightness up
        to 1, 255 or 65,535; or a dictionary of these by library. By default ``uns["spatial"][library]["images"]``. For
        SpatialData the name of an image, or a dictionary by region; by default the one image in the coordinate system
        of the region.
    image_key
        Key in ``uns["spatial"][library]["images"]``; by default the image with the highest resolution.
    library_key
        Column of ``obs`` with the library of every spot; needed if there are several.
    table_key
        Table of the SpatialData.
    spatial_key
        Key of the positions (x, y) in ``obsm``.
    patch_size
        Side of a patch, in `unit`.
    unit
        "spot" for spot diameters, "um" for micrometres.
    n_pixels
        Pixels to which a patch is resampled; by default the size that the model is designed for, else 224.
    timm_kwargs
        Further arguments of ``timm.create_model`` for a model by name, as its authors state them; see :doc:`/encoders`.
    pooling
        What to take of a model that returns tokens, ``(n_patches, n_tokens, n_features)``: ``"class"`` the first token,
        ``"class_mean"`` the first token and, beside it, the mean of the tokens of patches, twice as many features.
    standardize
        Give each feature mean 0 and standard deviation 1 over the spots of a library, because stains differ more
        between slides than tissues do. Switch it off for libraries of few spots or of selected places.
    scale
        Pixels of `image` per full-resolution pixel.
    spot_diameter
        Spot diameter in full-resolution pixels; by default that of the scale factors.
    microns_per_pixel
        Size of a full-resolution pixel in micrometres; by default that of the scale factors. For SpatialData, size of a
        unit of the region's own coordinates.
    key_added
        Key in ``obsm`` and ``uns``.
    batch_size
        Patches per batch.
    device
        Device of a module; by default a GPU if there is one.
    silent
        Show no progress bar.

    Raises
    ------
    MemoryError
        If a minibatch of patches, or an image that must be read as a whole, would take more than half of the available memory.
    KeyError, TypeError, ValueError
        If image, positions and scale do not match; the message names the spots and the remedy.
    FileNotFoundError
        If an image file does not exist.
    ImportError
        If a timm model is named but timm is not installed.

    Notes
    -----
    Spots of libraries without an image get NaN, which the model takes as "no image"; a warning names the libraries.

    Examples
    --------
    >>> lgdist_scvi.pp.image_embeddings(adata)
    >>> adata.obsm["X_image"].shape == (adata.n_obs, 120)
    True
    """
    check_whole(1, batch_size=batch_size, **({} if n_pixels is None else {"n_pixels": n_pixels}))
    check_name(key_added=key_added)
    if key_added in (spatial_key, "spatial"):
        raise ValueError(f"key_added={key_added!r} would overwrite the positions or the images; choose another key.")
    if pooling not in (None, "class", "class_mean"):
        raise ValueError(f"pooling={pooling!r} must be 'class', 'class_mean' or None.")
    if timm_kwargs and not isinstance(model, str):
        raise ValueError("timm_kwargs=... are for a timm model by name; pass model='NAME', or leave them out.")
    embed, name, preferred, made_with = _embedder(model, device, pooling, timm_kwargs or {})
    n_pixels = n_pixels or preferred
    require_memory(
        12 * n_pixels**2 * batch_size, f"Patches of n_pixels={n_pixels}", "Pass fewer pixels, or a smaller batch_size."
    )
    table, slides = open_slides(
        data,
        image=image,
        image_key=image_key,
        library_key=library_key,
        table_key=table_key,
        spatial_key=spatial_key,
        patch_size=patch_size,
        unit=unit,
        scale=scale,
        spot_diameter=spot_diameter,
        microns_per_pixel=microns_per_pixel,
    )
    check_key(table, key_added)
    plan = [(slide, side, spots) for slide, side in slides for spots in slide.batches(side, batch_size)]
    embeddings = None
    for slide, side, spots in track(plan, description="Embedding", style="tqdm", disable=silent):
        values = embed(slide.cut(spots, side, n_pixels))
        if values.ndim != 2 or len(values) != len(spots) or not np.isfinite(values).all():
            raise ValueError(
                f"The model {name!r} returned an array of shape {values.shape} for {len(spots)} patches, or values that "
                f"are not finite; it must return finite values of shape ({len(spots)}, n_features)."
                + (" Say which of its tokens to take with pooling='class' or 'class_mean'." if values.ndim == 3 else "")
            )
        if embeddings is None:
            embeddings = np.full((table.n_obs, values.shape[1]), np.nan, dtype=np.float32)
        embeddings[slide.rows[spots]] = values
    if standardize and embeddings is not None:
        for slide, _ in slides:
            embeddings[slide.rows] = standardized(embeddings[slide.rows])
    table.obsm[key_added] = embeddings
    table.uns[key_added] = {
        "package": PACKAGE,
        "version": version(PACKAGE),
        "model": name,
        **made_with,
        "patch_size": float(patch_size),
        "unit": unit,
        "n_pixels": int(n_pixels),
        "standardize": bool(standardize),
        "libraries": [slide.library for slide, _ in slides],
        "images": [slide.source for slide, _ in slides],
        "patch_pixels": [float(side) for _, side in slides],
    }


def check_key(adata: AnnData, key_added: str) -> None:
    """Check that nothing but embeddings would be replaced.

    Raises
    ------
    ValueError
        If other data have this name in ``obsm`` or ``uns``.
    """
    made = adata.uns.get(key_added)
    ours = isinstance(made, Mapping) and made.get("package") == PACKAGE
    if key_added != Keys.IMAGE and not ours and (key_added in adata.obsm or key_added in adata.uns):
        raise ValueError(
            f"key_added={key_added!r} would replace data of this name in obsm or uns that are no embeddings of ours; choose "
            "another key."
        )


def standardized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features of a library, ``(n_spots, n_features)``, each with mean 0 and standard deviation 1."""
    return (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), _LEAST_STD)


def _embedder(
    model: str | nn.Module | Callable[[torch.Tensor], ArrayLike] | None,
    device: str | torch.device | None,
    pooling: str | None,
    timm_kwargs: Mapping[str, Any],
) -> tuple[Callable[[torch.Tensor], NDArray], str, int, dict[str, str]]:
    """A function from patches to embeddings, its name, the side of the patches it is designed for, and its provenance."""
    name, prepare = getattr(model, "__name__", type(model).__name__), None
    made_with = {} if pooling is None else {"pooling": pooling}
    if model is None:
        model = StainDescriptor()
        name = "StainDescriptor"
    elif isinstance(model, str):
        name = model
        model, prepare, of_timm = _timm(model, timm_kwargs)
        made_with |= of_timm
    n_pixels = getattr(model, "n_pixels", _N_PIXELS)
    n_prefix = getattr(model, "num_prefix_tokens", 1)
    where = torch.device("cpu")
    if isinstance(model, nn.Module):
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = model.to(where).eval()

    @torch.no_grad()
    def embed(patches: torch.Tensor) -> NDArray:
        patches = patches.to(where)
        values = model(patches if prepare is None else prepare(patches))
        values = np.asarray(values.float().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float32)
        return values if pooling is None else _pooled(values, pooling, n_prefix, name)

    return embed, name, n_pixels, made_with


def _pooled(tokens: NDArray[np.float32], pooling: str, n_prefix: int, name: str) -> NDArray[np.float32]:
    """Features of patches from their tokens, of which the first `n_prefix` (class and registers) are of no place."""
    if tokens.ndim != 3 or tokens.shape[1] <= n_prefix:
        raise ValueError(
            f"pooling={pooling!r} needs tokens, but the model {name!r} returned an array of shape {tokens.shape}; leave out "
            "pooling=... for a model that pools them itself."
        )
    of_class = tokens[:, 0]
    return of_class if pooling == "class" else np.hstack([of_class, tokens[:, n_prefix:].mean(axis=1)])


def _timm(
    name: str, arguments: Mapping[str, Any]
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor], dict[str, str]]:
    """A pretrained model of timm, its input normalisation, and its provenance."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"model={name!r} names a timm model, but timm is not installed: run pip install 'lgdist-scvi[image]'."
        ) from error
    except RuntimeError as error:
        raise ImportError(
            f"model={name!r} names a timm model, but timm cannot be imported ({error}). Its torchvision must be built for "
            f"the installed PyTorch {torch.__version__}: install both from the same index (pytorch.org/get-started)."
        ) from error
    model = timm.create_model(name, **({"pretrained": True, "num_classes": 0} | dict(arguments)))
    config = timm.data.resolve_model_data_config(model)
    model.n_pixels = config["input_size"][-1]
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    made_with = {f"timm_{key}": getattr(value, "__name__", str(value)) for key, value in arguments.items()}
    made_with |= {
        "timm": timm.__version__,
        "license": str((getattr(model, "pretrained_cfg", None) or {}).get("license") or ""),
    }
    return model, lambda patches: (patches - mean.to(patches.device)) / std.to(patches.device), made_with
