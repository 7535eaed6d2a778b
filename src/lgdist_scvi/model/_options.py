"""The published configuration as options of the model."""

from __future__ import annotations

PUBLISHED: dict[str, object] = {
    "zeros_missing": True,
    "loss": "log",
    "condition": "neighbors",
    "n_rounds": 2,
}
"""Options of :class:`~lgdist_scvi.LGDiST` for the convention of the paper (arXiv 2509.01864): every zero is missing, the
loss is the squared error of log values, a spot is completed from its neighbours alone, and the diffusion is trained a
second time on the first completion. Use as ``LGDiST(adata, **PUBLISHED)``. What the paper's public code does beyond
that, such as showing the neighbours' codes the spot they are to complete, is not offered."""
