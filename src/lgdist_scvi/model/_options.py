"""Options: of the published configuration, and of what to read out of a trained model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from lgdist_scvi._checks import check_choice, check_flag, check_seed, check_whole
from lgdist_scvi.module._read_outs import READ_OUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

PUBLISHED: dict[str, object] = {
    "zeros_missing": True,
    "loss": "log",
    "condition": "neighbors",
    "n_rounds": 2,
}
"""Options of :class:`~lgdist_scvi.LGDiST` for the convention of the paper (arXiv 2509.01864): every zero is missing, the
loss is the squared error of log values, a spot is completed from its neighbours alone, and the diffusion is trained a
second time on the first completion. Usage: ``LGDiST(adata, **PUBLISHED)``. Other behaviour of the
paper's public code, such as letting the codes of the neighbours see the spot to complete, is not available."""

Scale = Literal["log1p", "rate", "counts"]

N_SAMPLES = 4
"""Samples of the diffusion where there is no latent field. Where there is one they change no score, and are not drawn."""
N_STEPS = 4
BATCH_SIZE = 256


@dataclass(frozen=True)
class Reading:
    """Options of :meth:`~lgdist_scvi.LGDiST.get_completed_expression` that determine the values.

    Raises
    ------
    TypeError, ValueError
        If an option is of another kind, or out of range.
    """

    n_samples: int = 0
    n_steps: int = N_STEPS
    keep_observed: bool = False
    return_std: bool = False
    scale: Scale = "log1p"
    read_out: str = "expected"
    use_image: bool = True
    seed: int = 0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, get_args(Scale))
        check_choice("read_out", self.read_out, READ_OUTS)
        check_flag(keep_observed=self.keep_observed, return_std=self.return_std, use_image=self.use_image)
        check_whole(0, n_samples=self.n_samples)
        check_seed(self.seed)
        check_whole(1, n_steps=self.n_steps, batch_size=self.batch_size)
        for name in ("n_samples", "n_steps", "seed", "batch_size"):
            # Numbers of NumPy go neither with the generators nor into files.
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.return_std and not READ_OUTS[self.read_out].has_std:
            raise ValueError("return_std needs read_out='expected'; leave out one of the two.")


def row_numbers(indices: Sequence[int] | NDArray[np.int64] | None, adata: AnnData) -> NDArray[np.int64]:
    """Row numbers of the chosen spots of `adata`; all by default."""
    if indices is None:
        return np.arange(adata.n_obs)
    rows = np.asarray(indices)
    if not rows.size:
        rows = rows.astype(np.int64)
    if rows.dtype == bool:
        if rows.shape != (adata.n_obs,):
            raise ValueError(f"The mask `indices` has shape {rows.shape}; it must have one entry per spot.")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError("`indices` must be a list of row numbers or a boolean mask of the spots.")
    if len(rows) and (rows.min() < 0 or rows.max() >= adata.n_obs):
        raise ValueError(f"`indices` must lie in 0..{adata.n_obs - 1}, got {rows.min()}..{rows.max()}.")
    return rows.astype(np.int64)


def gene_numbers(gene_list: Sequence[str] | None, adata: AnnData) -> NDArray[np.int64]:
    """Column numbers of the named genes of `adata`; all by default."""
    if gene_list is None:
        return np.arange(adata.n_vars)
    if isinstance(gene_list, str):
        raise ValueError(f"`gene_list` must be a list of genes; did you mean [{gene_list!r}]?")
    genes = list(gene_list) if isinstance(gene_list, Iterable) else [gene_list]
    if other := [gene for gene in genes if not isinstance(gene, str)]:
        raise TypeError(
            f"`gene_list` must hold names of genes, but has {len(other)} that are no text: {other[:5]}. For numbers or a mask pass "
            "adata.var_names[numbers_or_mask]."
        )
    numbers = adata.var_names.get_indexer(pd.Index(genes, dtype=object))
    unknown = [gene for gene, number in zip(genes, numbers, strict=True) if number < 0]
    if unknown:
        raise ValueError(f"{len(unknown)} genes of `gene_list` are not in adata.var_names: {unknown[:5]}.")
    return numbers
