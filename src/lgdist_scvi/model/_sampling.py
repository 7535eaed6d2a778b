"""Joint samples of the expression and of repeated measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lgdist_scvi._checks import check_whole
from lgdist_scvi._memory import require_memory

from ._base import LGDiSTBase
from ._options import BATCH_SIZE, Reading, gene_numbers, row_numbers
from ._reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sparse
    from anndata import AnnData
    from numpy.typing import NDArray

    from lgdist_scvi.data._view import SpotView

    from ._options import Scale

N_JOINT_SAMPLES = 25


class SamplingMixin(LGDiSTBase):
    """Samples from the posterior."""

    def sample_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        n_samples: int = N_JOINT_SAMPLES,
        scale: Scale = "rate",
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        silent: bool = False,
    ) -> NDArray[np.float32]:
        """Samples of the expression given the measured counts, joint over spots and genes.

        A sum or a difference of entries has the uncertainty that its samples show: the errors of spots near each other and of
        genes that vary together are drawn together. Compute it in every sample, then its mean and its quantiles. Standard
        deviations of single entries do not tell this.

        The samples come from the posterior of the latent field around the completed expression: its codes, which are drawn
        jointly over the tissue, the loadings and levels of the genes, and the overdispersion of every entry. The diffusion
        takes no part.

        Parameters
        ----------
        adata, indices, gene_list
            As in :meth:`get_completed_expression`. With one `seed`, a spot has the same draws of the field whichever `indices` are
            asked for, so large data can be sampled part by part.
        n_samples
            Number of samples.
        scale
            "rate": share of the spot's depth. "counts": expected counts at the spot's depth. "log1p": log1p of counts per
            10,000. Sums of the latter are not those of expression.
        seed, batch_size, silent
            As in :meth:`get_completed_expression`.

        Returns
        -------
        Samples ``(n_samples, n_spots, n_genes)`` in the unit of `scale`.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        KeyError, TypeError, ValueError
            If an argument or `adata` does not fit the model, or the model has no latent field.
        MemoryError
            If the result would take more than half of the available memory.

        References
        ----------
        Draws of a Markov field: :cite:t:`papandreou2010gaussian`; "Joint samples" of :doc:`/method`.

        Examples
        --------
        >>> samples = model.sample_expression(gene_list=["gene_1", "gene_2"], n_samples=10)
        >>> samples.shape == (10, adata.n_obs, 2)
        True
        >>> mean_of_section = samples.mean(axis=1)  # of each gene, in every sample
        """
        reading = Reading(n_samples=0, scale=scale, seed=seed, batch_size=batch_size)
        _, view, rows, genes = self._to_sample(adata, indices, gene_list, n_samples)
        self._require_samples(n_samples, view, rows, genes)
        samples = np.empty((n_samples, len(rows), len(genes)), dtype=np.float32)
        for place, _, part in self._samples(view, rows, genes, n_samples, reading, silent):
            samples[:, place] = part
        return samples

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int = BATCH_SIZE,
        *,
        seed: int = 0,
        silent: bool = True,
    ) -> sparse.GCXS:
        """Counts of repetitions of the measurement, as scvi-tools' criticism takes them.

        They are Poisson distributed around :meth:`sample_expression`.

        Parameters
        ----------
        adata, indices, n_samples, gene_list, batch_size, seed, silent
            As in :meth:`sample_expression`.

        Returns
        -------
        Counts ``(n_spots, n_genes, n_samples)``, and ``(n_spots, n_genes)`` for one sample.

        Raises
        ------
        RuntimeError, KeyError, TypeError, ValueError, MemoryError
            As :meth:`sample_expression`.

        References
        ----------
        :class:`scvi.criticism.PosteriorPredictiveCheck`.

        Examples
        --------
        >>> counts = model.posterior_predictive_sample(n_samples=2)
        >>> counts.shape == (*adata.shape, 2)
        True
        """
        import sparse  # takes seconds, and nothing else needs it

        reading = Reading(n_samples=0, scale="counts", seed=seed, batch_size=batch_size)
        _, view, rows, genes = self._to_sample(adata, indices, gene_list, n_samples)
        self._require_samples(n_samples, view, rows, genes)
        parts = self._samples(view, rows, genes, n_samples, reading, silent)
        generator = np.random.default_rng(seed)
        counts = [sparse.COO.from_numpy(generator.poisson(part).transpose(1, 2, 0)) for _, _, part in parts]
        joined = sparse.concatenate(counts, axis=0)
        return (joined if n_samples > 1 else joined[..., 0]).asformat("gcxs")

    def _to_sample(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        gene_list: Sequence[str] | None,
        n_samples: int,
    ) -> tuple[AnnData, SpotView, NDArray[np.int64], NDArray[np.int64]]:
        """The AnnData, what may be seen of it, and the numbers of the spots and genes to sample."""
        check_whole(1, n_samples=n_samples)
        adata, view = self._trained_view(adata, diffusion=False)
        if self.module.field is None:
            raise ValueError(
                "Joint samples are drawn from the latent field, and this model has none: train one with n_factors > 0 and "
                "without the published convention."
            )
        return adata, view, row_numbers(indices, adata), gene_numbers(gene_list, adata)

    def _samples(
        self,
        view: SpotView,
        rows: NDArray[np.int64],
        genes: NDArray[np.int64],
        n_samples: int,
        reading: Reading,
        silent: bool,
    ) -> Iterator:
        """Samples by minibatch."""
        every = np.array_equal(genes, np.arange(view.n_genes))
        reader = Reader(self.module, view, reading, n_samples)
        return reader.samples(rows, None if every else genes, silent=silent)

    def _require_samples(
        self, n_samples: int, view: SpotView, rows: NDArray[np.int64], genes: NDArray[np.int64]
    ) -> None:
        """Refuse samples that together would take more than half of the memory."""
        require_memory(
            4 * n_samples * len(rows) * len(genes) + self._bytes_of_draws(n_samples, view),
            f"{n_samples} samples of {len(rows)} spots and {len(genes)} genes",
            "Ask for part of it with `indices` or `gene_list`.",
        )

    def _bytes_of_draws(self, n_samples: int, view: SpotView) -> int:
        """Memory of the codes of all samples."""
        assert self.module.field is not None
        return 4 * n_samples * view.n_spots * self.module.field.n_factors
