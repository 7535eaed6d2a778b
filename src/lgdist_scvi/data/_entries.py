"""Reading of the observed entries of a count matrix, in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from ._on_disk import CountsOnDisk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    # An array, or a CSR or CSC matrix, for which scipy ships no types.
    Matrix: TypeAlias = Any

# Entries per block: about 100 MB of temporary arrays.
BLOCK_ENTRIES = 1 << 21


def listing(names: Sequence[Any], limit: int = 5) -> str:
    """Quote the first few names and say how many more there are.

    Parameters
    ----------
    names
        Names of spots, genes or libraries.
    limit
        Number of names to quote.

    Returns
    -------
    For example ``"'a', 'b' and 3 more"``.
    """
    shown = ", ".join(repr(str(name)) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def spot_listing(adata: AnnData, mask: NDArray[np.bool_]) -> str:
    """Count the spots in a mask and name the first.

    Parameters
    ----------
    adata
        Annotated spots.
    mask
        Boolean array of shape ``(n_spots,)``.

    Returns
    -------
    For example ``"2 spots ('a', 'b')"``.
    """
    names = adata.obs_names[mask]
    return f"{len(names)} spot{'s' if len(names) > 1 else ''} ({listing(names)})"


def require_supported(matrix: Any, where: str) -> None:
    """Raise an error unless a matrix is in memory and in a supported format.

    Parameters
    ----------
    matrix
        What the AnnData holds.
    where
        Its name for messages, such as ``adata.X``.

    Raises
    ------
    TypeError
        If it is not numeric, or neither a NumPy array nor a CSR or CSC matrix; scipy sparse arrays and masked arrays are refused, too.
    """
    if isinstance(matrix, sparse.sparray):
        raise TypeError(
            f"{where} is a scipy sparse array ({type(matrix).__name__}), which scvi-tools cannot load; convert it with "
            f"{where} = scipy.sparse.csr_matrix({where})."
        )
    if sparse.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            raise TypeError(
                f"{where} is a {type(matrix).__name__}; convert it with {where} = scipy.sparse.csr_matrix({where})."
            )
        try:
            # What is compiled trusts the indices, and would read beyond the matrix.
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(
                f"{where} is damaged: its indices do not fit its shape ({error}). Read it again from an undamaged file."
            ) from error
    elif isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(
            f"{where} is a masked array, of which only the numbers would be read. Store them with {where} = {where}.data, and in "
            "counts hide the masked entries with observed_layer=..., a layer with ~numpy.ma.getmaskarray(counts)."
        )
    elif not isinstance(matrix, np.ndarray):
        raise TypeError(
            f"{where} is a {type(matrix).__name__}; load it into memory as a numpy array or a scipy.sparse.csr_matrix "
            "(adata.to_memory() loads lazy data)."
        )
    if matrix.dtype.kind not in "buif":
        raise TypeError(
            f"{where} has dtype {matrix.dtype}; convert it to a numeric dtype, e.g. with astype('float32')."
        )


def count_matrix(adata: AnnData, layer: str | None) -> tuple[Matrix, str]:
    """Find the matrix with the counts.

    Parameters
    ----------
    adata
        Annotated spots.
    layer
        Key in ``layers``; None takes ``X``.

    Returns
    -------
    The matrix of shape ``(n_spots, n_genes)``, not copied, and its name for messages.

    Raises
    ------
    KeyError
        If the layer is missing.
    ValueError
        If ``X`` is None.
    TypeError
        As in :func:`require_supported`.
    """
    if layer is None:
        if adata.X is None:
            raise ValueError("adata.X is empty; pass layer=... to name the layer with the counts.")
        counts, where = adata.X, "adata.X"
    else:
        if layer not in adata.layers:
            raise KeyError(_missing("layers", layer, adata.layers, "layer"))
        counts, where = adata.layers[layer], f"adata.layers[{layer!r}]"
    require_supported(counts, where)
    return counts, where


def observed_matrix(adata: AnnData, observed_layer: str | None) -> Matrix | None:
    """Read the mask of observed entries.

    Parameters
    ----------
    adata
        Annotated spots.
    observed_layer
        Key in ``layers``; None when every entry was observed.

    Returns
    -------
    Boolean array, or CSR or CSC matrix without stored zeros, of shape ``(n_spots, n_genes)``; None when every entry was
    observed.

    Raises
    ------
    KeyError
        If the layer is missing.
    ValueError
        If it has another shape than the data, or values other than 0 and 1.
    TypeError
        As in :func:`require_supported`.
    """
    if observed_layer is None:
        return None
    if observed_layer not in adata.layers:
        raise KeyError(_missing("layers", observed_layer, adata.layers, "observed_layer"))
    observed, where = adata.layers[observed_layer], f"adata.layers[{observed_layer!r}]"
    require_supported(observed, where)
    if observed.shape != adata.shape:
        raise ValueError(f"{where} has shape {observed.shape}, but adata has {adata.shape}; they must be equal.")
    if observed.dtype.kind != "b":
        stored = observed.data if sparse.issparse(observed) else observed
        wrong = 0
        for start in range(0, len(stored), max(1, BLOCK_ENTRIES // max(1, stored[:1].size))):
            block = stored[start : start + max(1, BLOCK_ENTRIES // max(1, stored[:1].size))]
            wrong += int(((block != 0) & (block != 1)).sum())
        if wrong:
            raise ValueError(
                f"{where} is the mask of observed entries (observed_layer), but {wrong} entries are neither 0 nor 1; "
                "store True where the entry was observed and False elsewhere."
            )
        observed = observed.astype(bool)
    if sparse.issparse(observed) and not (observed.has_canonical_format and observed.data.all()):
        observed = observed.copy()
        observed.sum_duplicates()
        observed.eliminate_zeros()
    return observed


def _missing(attribute: str, key: str, present: Any, argument: str) -> str:
    # In anndata 0.13 layers[None] is X.
    found = sorted(name for name in present if name is not None)
    return f"adata.{attribute}[{key!r}] is missing (found: {found}); correct {argument}=..."


def count_observed(observed: Matrix | None, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """Count the observed entries of every spot and every gene.

    Parameters
    ----------
    observed
        Mask from :func:`observed_matrix`.
    shape
        Shape of the data.

    Returns
    -------
    Int64 arrays of shapes ``(n_spots,)`` and ``(n_genes,)``.
    """
    n_obs, n_vars = shape
    if observed is None:
        return np.full(n_obs, n_vars, dtype=np.int64), np.full(n_vars, n_obs, dtype=np.int64)
    if not sparse.issparse(observed):
        return np.count_nonzero(observed, axis=1), np.count_nonzero(observed, axis=0)
    major = np.diff(observed.indptr).astype(np.int64)
    minor = np.bincount(observed.indices, minlength=n_vars if observed.format == "csr" else n_obs)
    return (major, minor) if observed.format == "csr" else (minor, major)


def observed_entries(
    counts: Matrix, observed: Matrix | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray]]:
    """Iterate over the non-zero observed entries in blocks of bounded size.

    Hidden entries are never read, so their values, NaN included, have no effect.

    Parameters
    ----------
    counts
        Array, or CSR or CSC matrix, of shape ``(n_spots, n_genes)``; or counts on disk.
    observed
        Mask from :func:`observed_matrix`; None for counts on disk.

    Yields
    ------
    Rows, columns and values of a block's entries, each of shape ``(n_entries,)``.
    """
    if isinstance(counts, CountsOnDisk):
        for start, part in counts.blocks():
            require_supported(part, counts.where)
            for row, col, value in _sparse_entries(part, None):
                yield row + start, col, value
        return
    if sparse.issparse(counts):
        yield from _sparse_entries(counts, observed)
        return
    if observed is not None and sparse.issparse(observed):
        observed = observed.tocsr()
    step = max(1, BLOCK_ENTRIES // max(1, counts.shape[1]))
    for start in range(0, counts.shape[0], step):
        block = counts[start : start + step]
        present = block != 0
        if observed is not None:
            mask = observed[start : start + step]
            present &= mask.toarray() if sparse.issparse(mask) else mask
        row, col = np.nonzero(present)
        yield row + start, col, block[row, col]


def _sparse_entries(
    counts: sparse.csr_matrix | sparse.csc_matrix, observed: Matrix | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray]]:
    by_row = counts.format == "csr"
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    if observed is not None and sparse.issparse(observed):
        observed = observed.asformat(counts.format)
        observed.sort_indices()
    n_major, n_minor = counts.shape if by_row else counts.shape[::-1]
    for start, stop in _spans(counts.indptr):
        span = slice(counts.indptr[start], counts.indptr[stop])
        major = np.repeat(np.arange(start, stop, dtype=np.int64), np.diff(counts.indptr[start : stop + 1]))
        minor = counts.indices[span].astype(np.int64)
        value = counts.data[span]
        row, col = (major, minor) if by_row else (minor, major)
        keep = value != 0
        if observed is not None and sparse.issparse(observed):
            listed = np.repeat(np.arange(start, stop, dtype=np.int64), np.diff(observed.indptr[start : stop + 1]))
            listed = listed * n_minor + observed.indices[observed.indptr[start] : observed.indptr[stop]]
            keep &= _is_in_sorted(major * n_minor + minor, listed)
        elif observed is not None:
            keep &= observed[row, col]
        yield row[keep], col[keep], value[keep]


def _spans(indptr: NDArray) -> Iterator[tuple[int, int]]:
    """Ranges of rows (or columns) that hold about `BLOCK_ENTRIES` stored entries each."""
    start, end = 0, len(indptr) - 1
    while start < end:
        stop = int(np.searchsorted(indptr, indptr[start] + BLOCK_ENTRIES, side="right")) - 1
        stop = min(max(stop, start + 1), end)
        yield start, stop
        start = stop


def _is_in_sorted(values: NDArray, listed: NDArray) -> NDArray[np.bool_]:
    if len(listed) == 0:
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(listed, values), len(listed) - 1)
    return listed[place] == values
