"""Warnings when a completion should not be trusted."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import numpy as np
from pandas.util import hash_array

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

SIMILAR = 0.6
"""Minimum correlation of the log shares of genes. Sections of one tissue have 0.84 to 0.99 (cortex, breast tumour,
hippocampus), cortex and tumours 0.13 to 0.46."""
_FEWEST_GENES = 20
_COLLAPSED = 0.01
_REMEMBERED = 500
_TELLING_GENES = 10
_ENTRIES, _SPOTS_WITH_ENTRIES = 2, 200
# Entries that must be compared, and the share that must be equal. Of spots of one name in other sections some are equal by chance.
_FEWEST_ENTRIES, _ALIKE = 10, 0.9

NO_ENTRIES = np.empty((0, 1 + 2 * _ENTRIES), dtype=np.uint64)
"""Fingerprints of no entries."""


def warn_if_unlike(view: SpotView, trained_share: NDArray[np.float64]) -> None:
    """Warn if a section expresses its genes in other proportions than the training sections."""
    if len(trained_share) < _FEWEST_GENES or not view.counts.nnz:
        return
    similarity = float(np.corrcoef(np.log(view.measured_share()), np.log(trained_share))[0, 1])
    if similarity < SIMILAR:
        warnings.warn(
            f"These spots express their genes in other proportions than the training sections (correlation "
            f"of log shares {similarity:.2f}; sections of one tissue have more than {SIMILAR}). Train on sections of this "
            "tissue, or check the completion with evaluate_completion(adata).",
            UserWarning,
            stacklevel=4,
        )


def warn_if_collapsed(codes: NDArray[np.float32]) -> None:
    """Warn if all spots have the same code."""
    if len(codes) > 1 and codes.std(axis=0).max() < _COLLAPSED:
        warnings.warn(
            "All spots have nearly the same code, so the completion hardly differs between them. Train longer or with a lower "
            "weight_decay, or register more spots, or genes with more counts.",
            UserWarning,
            stacklevel=4,
        )


def digest_of(view: SpotView) -> str:
    """Hash of the counts of these spots, in this order."""
    return hashlib.sha256(view.fingerprints().data).hexdigest()


def sample_of(view: SpotView) -> NDArray[np.uint64]:
    """Fingerprints of a random sample of spots, small enough to save with a model."""
    return np.random.default_rng(0).permutation(_telling(view))[:_REMEMBERED]


def entries_of(view: SpotView) -> NDArray[np.uint64]:
    """Fingerprints of the highest counts of a random sample of spots: by them a spot is known also where other entries are hidden.

    Returns
    -------
    The spot's name, genes, and the counts there, ``(n_sampled, 5)``; names and counts as hashes, and genes of
    spots with fewer detected genes beyond the last.
    """
    rows = np.random.default_rng(0).permutation(view.n_spots)[:_SPOTS_WITH_ENTRIES]
    genes = np.full((len(rows), _ENTRIES), view.n_genes, dtype=np.uint64)
    for number, row in enumerate(rows):
        start, stop = view.counts.indptr[row : row + 2]
        highest = np.argsort(-view.counts.data[start:stop], kind="stable")[:_ENTRIES]
        genes[number, : len(highest)] = view.counts.indices[start:stop][highest]
    return np.column_stack([view.names[rows], genes, _hashed(view, rows, genes)])


def _hashed(view: SpotView, rows: NDArray[np.int64], genes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of the counts of some genes of each spot, which do not tell the counts."""
    at = np.minimum(genes, view.n_genes - 1).astype(np.int64)
    counts = np.asarray(view.counts[rows[:, None], at].todense()) if len(rows) else np.zeros(genes.shape)
    return hash_array((view.names[rows][:, None] * (genes + 1) + counts.astype(np.uint64)).ravel()).reshape(genes.shape)


def holds_some_of(view: SpotView, spots: NDArray[np.uint64], entries: NDArray[np.uint64]) -> bool:
    """Whether any of the spots is in a sample of spots or, with other entries hidden, in a sample of entries."""
    # By sorting: the other way of numpy 2.0 overflows with numbers of 64 bits.
    if np.isin(spots, _telling(view), kind="sort").any():
        return True
    # Other spots may have the same names, and some of the same counts.
    order = np.argsort(view.names)
    place = order[np.minimum(np.searchsorted(view.names, entries[:, 0], sorter=order), view.n_spots - 1)]
    known = view.names[place] == entries[:, 0]
    rows, genes, hashes = place[known], entries[known, 1 : 1 + _ENTRIES], entries[known, 1 + _ENTRIES :]
    there = genes < view.n_genes
    if len(rows):
        hidden = view.hidden[rows]
        there &= ~np.take_along_axis(hidden, np.minimum(genes, view.n_genes - 1).astype(np.int64), axis=1)
    equal = _hashed(view, rows, genes) == hashes
    return int(there.sum()) >= _FEWEST_ENTRIES and float(equal[there].mean()) > _ALIKE


def warn_if_trained_on(view: SpotView, spots: NDArray[np.uint64], entries: NDArray[np.uint64]) -> None:
    """Warn if the hidden entries belong to spots of the training."""
    if holds_some_of(view, spots, entries):
        warnings.warn(
            "The model was trained on some of these spots and has seen the entries hidden now, so the scores are too good. Call "
            "evaluate_completion() without adata to score entries held out of training.",
            UserWarning,
            stacklevel=4,
        )


def _telling(view: SpotView) -> NDArray[np.uint64]:
    # Spots with few detected genes may match others by chance.
    return view.fingerprints()[np.diff(view.counts.indptr) >= _TELLING_GENES]


def warn_if_no_better_than_means(scores: pd.DataFrame) -> None:
    """Warn if held-out entries are predicted no better than by simple means."""
    better = scores["d2"].drop("lgdist")
    best = better.idxmax()
    if scores.loc["lgdist", "d2"] <= better[best]:
        warnings.warn(
            f"Held-out entries are predicted no better (d2 = {scores.loc['lgdist', 'd2']:.3f}) than by the {best} "
            f"({better[best]:.3f}): do not base claims on this completion. More spots, genes with more counts or longer "
            "training may help.",
            UserWarning,
            stacklevel=3,
        )
