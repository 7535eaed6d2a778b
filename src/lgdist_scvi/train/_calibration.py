"""Calibration after the first phase: overdispersion around the predicted rates, and the read-out given detection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi.module._likelihoods import Overdispersion
from lgdist_scvi.module._normalisation import log_normalise
from lgdist_scvi.module._posterior import passes, predict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.dataloaders._neighborhood import NeighborhoodDataModule
    from lgdist_scvi.module._lgdist import LGDiSTModule

CALIBRATION_SPOTS = 2000
"""Number of spots used to estimate the overdispersion."""
_BLOCK_SPOTS = 256
# Prior weights of network and field in the read-out given detection, and the number of entries that the prior is
# worth.
_DETECTED_PRIOR = (0.65, 0.35)
_DETECTED_PRIOR_ENTRIES = 10.0
# The share of the field in the log of a rate that is expected, and how much more deviance than this must speak against it.
_SHARE_PRIOR, _SHARE_PRIOR_ENTRIES = 0.6, 10.0


def fit_calibration(
    module: LGDiSTModule,
    data: NeighborhoodDataModule,
    seed: int,
    noise: torch.Tensor | None = None,
    n_steps: int = 1,
) -> None:
    """Set the overdispersion around the predicted rates, and the scale of the read-out given detection.

    Overdispersion is estimated on visible entries, around predictions of the network without the own count and of the factor
    model with it. The read-out given detection is fitted by regression on held-out detected entries: among the entries seen
    in training, genes with hidden entries may have too few detections.

    Parameters
    ----------
    module
        Module with a trained autoencoder, changed in place.
    data
        Training data.
    seed
        Seed of the selection of spots.
    noise, n_steps
        As in :func:`~lgdist_scvi.module._posterior.predict`; by default the autoencoder's own predictions.
    """
    rows = np.random.default_rng(seed).permutation(data.n_train)[:CALIBRATION_SPOTS]
    blocks = np.array_split(np.sort(rows), max(1, len(rows) // _BLOCK_SPOTS))
    network, field = Overdispersion(module.dispersion), Overdispersion(module.dispersion)
    for block in blocks:
        prediction = predict(module, data.view.gather(block), noise, n_steps)
        network.add(prediction.network, prediction.batch)
        field.add(prediction.field, prediction.batch)
    module.dispersion.copy_(network.size())
    if module.field is not None:
        module.field.dispersion.copy_(field.size())
        module.field.fit_detection(_field_blocks(module, data, blocks))
    _fit_on_held_out(module, data)


def _field_blocks(
    module: LGDiSTModule, data: NeighborhoodDataModule, blocks: list[NDArray]
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Log rates of the field without the own counts, with their minibatches."""
    assert module.field is not None
    for block in blocks:
        gathered = data.view.gather(block)
        todo = [part for part in passes(gathered.observed) if part.of_visible]
        batch = gathered.to(module.device)
        log_rate = torch.zeros_like(batch.counts)
        for part in todo:
            left_out, genes = part.left_out.to(module.device), part.genes.to(module.device)
            predicted = module.field(batch, batch.observed & ~left_out, module.share, genes, part.part).log_rate
            log_rate[:, genes] = torch.where(batch.observed[:, genes], predicted, 0)
        yield log_rate, batch


def _fit_on_held_out(module: LGDiSTModule, data: NeighborhoodDataModule) -> None:
    """Fit what held-out entries tell: the share of the field beside the network, and the read-out given detection.

    The share is that with the lowest Poisson deviance of the counts. Log values of detected entries are regressed on the
    predictions of network and field.
    """
    field = module.field
    n_parts = 1 if field is None else 2
    prior = torch.tensor([0.0, *(_DETECTED_PRIOR if n_parts == 2 else (1.0,))], dtype=torch.float64)
    penalty = torch.diag(torch.tensor([1e-3] + n_parts * [_DETECTED_PRIOR_ENTRIES], dtype=torch.float64))
    products, targets = penalty.clone(), penalty @ prior
    shares = torch.linspace(0, 1, 21)
    deviance = _SHARE_PRIOR_ENTRIES * (shares - _SHARE_PRIOR).square().double()
    for seen, counts, held_out in data.val_dataloader():
        batch = seen.to(module.device)
        visible = module.condition.visible(batch)
        with torch.no_grad():
            rates = module.decode(module.encode(batch, visible).centre, batch)
        parts = [rates.detected]
        if field is not None:
            smooth = field(batch, visible, module.share)
            parts.append(smooth.detected)
            difference, log_rate = smooth.log_rate - rates.log_rate, rates.log_rate + batch.depth.log()[:, None]
            for i, share in enumerate(shares.tolist()):
                log_mean = (log_rate + share * difference).cpu()
                deviance[i] += ((log_mean.exp() - counts * log_mean) * held_out).sum().double()
        # On the CPU, in double precision, which not every device has.
        weight = (module.gene_weight.cpu() * (held_out & (counts > 0))).double().flatten()
        x = torch.stack([torch.ones_like(parts[0]), *parts], dim=-1).cpu().double().flatten(0, 1)
        weighted = (x * weight[:, None]).T
        y = log_normalise(counts, seen.depth).double().flatten()
        products, targets = products + weighted @ x, targets + weighted @ y
    module.detected_calibration[: n_parts + 1] = torch.linalg.solve(products, targets).float()
    if field is not None:
        field.mixing.copy_(shares[deviance.argmin()])
