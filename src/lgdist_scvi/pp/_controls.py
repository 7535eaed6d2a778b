"""Control features, kept apart from the genes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lgdist_scvi._constants import Keys
from lgdist_scvi.data._controls import controls_among
from lgdist_scvi.data._entries import count_matrix, listing

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._entries import Matrix
    from lgdist_scvi.data._on_disk import CountsOnDisk


def drop_controls(adata: AnnData, *, layer: str | None = None) -> AnnData:
    """Take control features out of the genes, and keep their counts beside them.

    Control probes, negative and unassigned codewords, blank barcodes and withdrawn probes are recognised by the names that
    Xenium, CosMx, MERSCOPE and Space Ranger give them. They are no genes: what is counted of them is error, and their
    expression is zero everywhere. :func:`lgdist_scvi.tl.prepare_audit` adds them to the decoys, to show what a completion makes
    of genes that are absent.

    Parameters
    ----------
    adata
        Annotated cells; not changed.
    layer
        Layer with the counts; None takes ``X``.

    Returns
    -------
    A copy without the control features. If there are any, ``obsm["controls"]`` has their counts,
    ``(n_spots, n_controls)``, in a frame with their names.

    Warns
    -----
    UserWarning
        Which features were taken out.

    Raises
    ------
    KeyError
        If the layer is missing.
    TypeError
        If the counts are neither an array nor a CSR or CSC matrix.
    ValueError
        If no layer is named and ``X`` is empty.

    Examples
    --------
    >>> lgdist_scvi.pp.drop_controls(adata, layer="counts").shape == adata.shape
    True
    """
    control = controls_among(adata.var_names)
    if not control.any():
        return adata.copy()
    return controls_apart(adata, count_matrix(adata, layer)[0], control, stacklevel=2)


def controls_apart(
    adata: AnnData, counts: Matrix | CountsOnDisk, control: NDArray[np.bool_], *, stacklevel: int
) -> AnnData:
    """A copy of `adata` without the features that are a `control`, ``(n_genes,)``, whose `counts` are in ``obsm``."""
    of_controls = counts[:, np.flatnonzero(control)]
    names = adata.var_names[control]
    genes = adata[:, ~control].copy()
    values = np.array(of_controls) if isinstance(of_controls, np.ndarray) else of_controls.toarray()
    genes.obsm[Keys.CONTROLS] = pd.DataFrame(values, index=adata.obs_names, columns=names)
    warnings.warn(
        f"{len(names)} control features ({listing(list(names))}) are left out of the genes; their counts are in "
        f"obsm[{Keys.CONTROLS!r}].",
        UserWarning,
        stacklevel=stacklevel + 1,
    )
    return genes
