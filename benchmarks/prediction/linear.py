"""Ridge regression from the embedded image.

A. E. Hoerl and R. W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Technometrics, 1970.

Simpler than most uses: one penalty for all genes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .sections import Floats, Predictor, Section

PENALTIES = tuple(np.geomspace(1, 1e5, 11))


class Linear(Predictor):
    """Linear in the embedding; the penalty is chosen by leaving out whole sections of the training."""

    def learn(self, sections: Sequence[Section]) -> None:
        errors = np.zeros(len(PENALTIES))
        for out in sections if len(sections) > 1 else ():
            others = [section for section in sections if section is not out]
            for i, weights in enumerate(coefficients(others, PENALTIES)):
                errors[i] += (np.square(design(out) @ weights - out.values) * out.seen).sum()
        self.penalty = PENALTIES[errors.argmin()]
        (self.weights,) = coefficients(sections, (self.penalty,))

    def differences(self, section: Section) -> Floats:
        return design(section) @ self.weights


def design(section: Section) -> Floats:
    """Features, and a constant."""
    return np.column_stack([section.image.astype(np.float64), np.ones(len(section.image))])


def coefficients(sections: Sequence[Section], penalties: Sequence[float]) -> list[Floats]:
    """Coefficients ``(n_features + 1, n_genes)`` for every penalty; each gene has its own spots to learn from."""
    x = np.concatenate([design(section) for section in sections])
    y = np.concatenate([section.values for section in sections])
    seen = np.concatenate([section.seen for section in sections]).astype(np.float64)
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    gram = (seen.T @ products).reshape(-1, x.shape[1], x.shape[1])
    moment = (x.T @ y).T[:, :, None]
    shrunk = np.append(np.ones(x.shape[1] - 1), 1e-6)  # hardly the constant
    return [np.linalg.solve(gram + penalty * np.diag(shrunk), moment)[:, :, 0].T for penalty in penalties]
