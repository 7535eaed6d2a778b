"""Features of a panel that are no genes, recognised by their names."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ._entries import listing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from numpy.typing import NDArray

_NAMES = re.compile(
    # Xenium: probes and codewords that no transcript of the sample has, and codes that no gene was given.
    r"NegControl(Probe|Codeword)_|UnassignedCodeword_|DeprecatedCodeword_|antisense_|BLANK_\d"
    # CosMx: probes without a target, and codes without a probe.
    r"|Negative\d*$|NegPrb\d*$|NegProbe|SystemControl\d*|FalseCode"
    # MERSCOPE: barcodes without a probe.
    r"|[Bb]lank[-_]\d"
    # Probes for Visium that 10x Genomics has withdrawn.
    r"|DEPRECATED_"
)


def controls_among(names: Iterable[str]) -> NDArray[np.bool_]:
    """True for control probes, negative codewords, blank barcodes and withdrawn probes.

    Parameters
    ----------
    names
        Names of features, as Xenium, CosMx, MERSCOPE and Space Ranger give them.

    Returns
    -------
    Array of shape ``(n_features,)``.
    """
    return np.array([_NAMES.match(str(name)) is not None for name in names], dtype=bool)


def warn_of_controls(adata: AnnData, *, stacklevel: int) -> None:
    """Say that features would be completed that are no genes.

    Parameters
    ----------
    adata
        Annotated spots.
    stacklevel
        As in :func:`warnings.warn`, from the caller of this function.
    """
    control = controls_among(adata.var_names)
    if control.any():
        warnings.warn(
            f"adata has {control.sum()} control features ({listing(list(adata.var_names[control]))}), which are no genes and "
            "would be completed; use adata = lgdist_scvi.pp.drop_controls(adata).",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
