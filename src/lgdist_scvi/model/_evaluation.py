"""Scores on unseen entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from lgdist_scvi._checks import check_share
from lgdist_scvi._constants import TARGET_SUM
from lgdist_scvi.data._hidden import dense
from lgdist_scvi.data._holdout import holdout_entries
from lgdist_scvi.data._hops import hop_weights
from lgdist_scvi.metrics import deviance_explained, gene_pearson, masked_mse

from ._base import LGDiSTBase
from ._guards import digest_of, holds_some_of, warn_if_no_better_than_means, warn_if_trained_on
from ._options import N_STEPS
from ._reader import Reader

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._options import Reading

NEIGHBOR_HOPS = 2


class EvaluationMixin(LGDiSTBase):
    """Evaluation on held-out entries."""

    def evaluate_completion(
        self,
        adata: AnnData | None = None,
        *,
        fraction: float = 0.05,
        n_samples: int | None = None,
        n_steps: int = N_STEPS,
        use_image: bool = True,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Hide entries, complete them, and score the result beside simple baselines.

        Without `adata`, the entries held out of training are scored: they were used only to decide when to stop. For other
        sections, entries are drawn here.

        Parameters
        ----------
        adata
            Sections that the model was not trained on; by default the model's own sections. A copy of its own sections is treated
            like these.
        fraction
            Share of the observed entries to hide in `adata`; ignored for the model's own sections, where training sets it.
        n_samples, n_steps, use_image
            As in :meth:`get_completed_expression`.
        seed
            Seed of the hidden entries of `adata` and of the sampling.
        silent
            Show no progress bar.

        Returns
        -------
        Table ``(3, 4)`` with a row for the model ("lgdist"), the mean of each gene and the mean over spatial neighbours
        (two hops), and the columns ``mse_detected`` (squared error of log1p counts per 10,000 at hidden detected
        entries), ``pcc_gene`` (their Pearson correlation over spots, mean over genes), ``d2`` (share of the Poisson
        deviance of the gene means explained at all hidden entries, zeros included) and ``n_entries``.

        Raises
        ------
        MemoryError
            If `n_samples` codes of a minibatch would take more than half of the available memory.
        ValueError
            If nothing was held out, or the AnnData of the model has changed since training.
        KeyError, TypeError, ValueError
            If an argument or `adata` does not fit the model.
        RuntimeError
            If the model has not been trained.

        References
        ----------
        ``mse_detected`` is the score of :cite:t:`cardenas2025lgdist`, ``d2`` that of :cite:t:`cameron1996rsquared`.

        Examples
        --------
        >>> scores = model.evaluate_completion()
        >>> list(scores.index)
        ['lgdist', 'gene mean', 'spatial neighbours']
        """
        reading = self._reading(n_samples, n_steps=n_steps, use_image=use_image, seed=seed)
        truth, hidden, view, rows = self._hide(adata, fraction, reading)
        predictions = {
            "lgdist": Reader(self.module, view, reading).hidden(rows, silent=silent)[::2],
            "gene mean": _gene_means(view, rows),
            "spatial neighbours": _neighbor_means(view, rows),
        }
        counts, mask = truth.counts[rows].toarray(), hidden[rows].toarray()
        depth = view.depth[rows]
        value = np.log1p(counts / depth[:, None] * TARGET_SUM)
        detected = mask & (counts > 0)
        scores = {
            name: {
                "mse_detected": masked_mse(log_value, value, detected),
                "pcc_gene": float(pd.Series(gene_pearson(log_value, value, detected)).mean()),
                "d2": deviance_explained(counts, rate, depth, predictions["gene mean"][0][0], mask),
                "n_entries": int(mask.sum()),
            }
            for name, (rate, log_value) in predictions.items()
        }
        table = pd.DataFrame.from_dict(scores, orient="index")
        warn_if_no_better_than_means(table)
        return table

    def get_held_out_entries(
        self,
        adata: AnnData | None = None,
        *,
        fraction: float = 0.05,
        n_samples: int | None = None,
        n_steps: int = N_STEPS,
        use_image: bool = True,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """The entries that :meth:`evaluate_completion` scores: measured counts, and predictions made without them.

        Parameters
        ----------
        adata, fraction, n_samples, n_steps, use_image, seed, silent
            As in :meth:`evaluate_completion`.

        Returns
        -------
        Table ``(n_entries, 7)`` with the columns ``spot``, ``gene``, ``count`` (measured), ``depth`` (counts of the
        spot over the whole transcriptome), ``expected`` and ``std`` (mean and standard deviation of the predicted rate,
        times the depth) and ``detected`` (predicted log1p counts per 10,000, given that the gene is detected).
        Functions of ``lgdist_scvi.pl`` draw it: :func:`~lgdist_scvi.pl.held_out`, :func:`~lgdist_scvi.pl.gene_accuracy`,
        :func:`~lgdist_scvi.pl.coverage`.

        Raises
        ------
        MemoryError
            As :meth:`evaluate_completion`.
        KeyError, TypeError, ValueError, RuntimeError
            As :meth:`evaluate_completion`.

        Examples
        --------
        >>> entries = model.get_held_out_entries()
        >>> list(entries.columns)
        ['spot', 'gene', 'count', 'depth', 'expected', 'std', 'detected']
        >>> ax = lgdist_scvi.pl.coverage(entries)
        """
        source = self.adata if adata is None else adata
        reading = self._reading(n_samples, n_steps=n_steps, return_std=True, use_image=use_image, seed=seed)
        truth, hidden, view, rows = self._hide(adata, fraction, reading)
        predicted = Reader(self.module, view, reading).hidden(rows, silent=silent)
        row, gene = hidden[rows].nonzero()
        rate, std, detected = (values[row, gene] for values in predicted)
        spot, depth = rows[row], view.depth[rows[row]]
        return pd.DataFrame(
            {
                "spot": pd.Categorical.from_codes(spot, source.obs_names),
                "gene": pd.Categorical.from_codes(gene, source.var_names),
                "count": np.asarray(truth.counts[spot, gene]).ravel(),
                "depth": depth,
                "expected": rate * depth,
                "std": std * depth,
                "detected": detected,
            }
        )

    def _hide(
        self, adata: AnnData | None, fraction: float, reading: Reading
    ) -> tuple[SpotView, sparse.csr_matrix, SpotView, NDArray[np.int64]]:
        """View with all entries, mask of hidden entries, view without them, and rows of spots with hidden entries."""
        check_share(fraction=fraction)
        _, truth = self._trained_view(adata, diffusion=reading.n_samples > 0, use_image=reading.use_image)
        # A copy of the training data is accepted; filtered training data is not.
        own = digest_of(truth) == self.trained_digest_
        if not own and adata is None and holds_some_of(truth, self.trained_spots_, self.trained_entries_):
            raise ValueError(
                "model.adata has changed since training, so the entries held out of training cannot be found. Evaluate before "
                "you change or filter it."
            )
        if not own:
            warn_if_trained_on(truth, self.trained_spots_, self.trained_entries_)
        hidden = holdout_entries(truth.hidden, self.held_out_ if own else fraction, self.seed_ if own else reading.seed)
        if not hidden.nnz:
            raise ValueError(
                f"No entry of {truth.n_spots} spots and {truth.n_genes} genes is held out; train with validation_size > 0, or pass "
                "fraction > 0 with adata, large enough for their number."
            )
        view = truth.without(hidden, truth.share)
        rows = np.flatnonzero(np.diff(hidden.indptr))
        return truth, hidden, view, rows


def _log_values(view: SpotView) -> sparse.csr_matrix:
    values = view.counts.multiply(TARGET_SUM / view.depth[:, None]).tocsr()
    values.data = np.log1p(values.data)
    return values


def _gene_means(view: SpotView, rows: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Mean share of each gene, and mean log value where detected."""
    values, shape = _log_values(view), (len(rows), view.n_genes)
    depth = view.depth.astype(np.float64)
    seen = depth.sum() - np.asarray(view.hidden.times(depth).sum(axis=0)).ravel()
    share = np.asarray(view.counts.sum(axis=0)).ravel() / np.maximum(seen, 1)
    mean = np.asarray(values.sum(axis=0)).ravel() / np.maximum(values.getnnz(axis=0), 1)
    return np.broadcast_to(share, shape), np.broadcast_to(mean, shape)


def _neighbor_means(view: SpotView, rows: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """The same over the spots within two hops; over all spots where these have no value."""
    near = hop_weights(view.graph, (NEIGHBOR_HOPS,))[0][rows]
    share, mean = _gene_means(view, rows)
    values, depth = _log_values(view), view.depth.astype(np.float64)
    seen = (near @ depth)[:, None] - dense(near @ view.hidden.times(depth))
    n_detected = (near @ (values > 0).astype(np.float32)).toarray()
    rate = np.where(seen > 0.5, (near @ view.counts).toarray() / np.maximum(seen, 0.5), share)
    return rate, np.where(n_detected > 0, (near @ values).toarray() / np.maximum(n_detected, 1), mean)
