"""Calibration after the first phase: overdispersion, the share of the field, and the read-out given detection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lgdist_scvi.data._similar import log_ratio
from lgdist_scvi.module._dispersion import Overdispersion
from lgdist_scvi.module._mixing import Totals
from lgdist_scvi.module._normalisation import log_normalise
from lgdist_scvi.module._posterior import passes, predict
from lgdist_scvi.module._similarity import fit_similarity

from ._statistics import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lgdist_scvi.data._batch import Batch
    from lgdist_scvi.data._similar import SimilarSpots
    from lgdist_scvi.dataloaders._neighborhood import NeighborhoodDataModule
    from lgdist_scvi.module._lgdist import LGDiSTModule

CALIBRATION_SPOTS, FOLDED_SPOTS = 1200, 16384
"""Number of spots used to estimate the overdispersion, and of those in strips of a large tissue from which they are taken and among which
similar ones are sought."""
_BLOCK_SPOTS = 256
# Prior weights of network and field in the read-out given detection, and the number of entries that the prior is
# worth.
_DETECTED_PRIOR = (0.65, 0.35)
_DETECTED_PRIOR_ENTRIES = 10.0
# Share of the field in the log of a rate that is expected, and the deviance that a share one away from it has beforehand.
_SHARE_PRIOR, _SHARE_PRIOR_WEIGHT = 0.6, 10.0
SIMILARITY_SCALES, EXPECTED_SCALE = (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 1e4), 1 / 4
"""Factors of the pseudo-counts of similar spots, which leave them less and less weight, and the one that is expected."""
_PSEUDO_COUNT = 0.5  # of totals whose ratio is wanted
_SCALE_PRIOR_WEIGHT = 1.0  # deviance that each step away from it has beforehand


def fit_calibration(
    module: LGDiSTModule,
    data: NeighborhoodDataModule,
    seed: int,
    noise: torch.Tensor | None = None,
    n_steps: int = 1,
) -> None:
    """Set the overdispersion around the predicted rates, the shares of the field and of similar spots, and the scale of the read-out given detection.

    Overdispersion is estimated on visible entries, around predictions of the network without the own count and of the factor
    model with it; there too what is lost of totals when the two are averaged. The share of the field and the read-out given detection
    are fitted to entries held out for this: among the entries seen in training, genes with hidden entries may have too few detections.

    Parameters
    ----------
    module
        Module with a trained autoencoder, changed in place.
    data
        Training data, with the entries that were held out for the calibration and are not scored.
    seed
        Seed of the selection of spots.
    noise, n_steps
        As in :func:`~lgdist_scvi.module._posterior.predict`; by default the autoencoder's own predictions.
    """
    # In a large tissue the codes without a fold of the genes are solved in some strips only.
    known = np.flatnonzero(np.isfinite(data.view.field[:, -1]).all(axis=1))
    rows = some_of(known, CALIBRATION_SPOTS, seed)
    blocks = _blocks(rows)
    if module.field is not None:
        # No minibatch holds what similar spots say before it is known how much they are listened to.
        similar, data.view.similar = data.view.similar, None
        if similar is not None:
            fit_similarity(module.field, similar, rows)
        _fit_shares(module, data, similar)
        data.view.similar = similar
        if similar is not None:
            _fit_gain(module, data, similar, known)
    network, field = Overdispersion(module.dispersion), Overdispersion(module.dispersion)
    totals = Totals(module.dispersion)
    for block in blocks:
        prediction = predict(module, data.view.gather(block), noise, n_steps)
        depth = prediction.batch.depth[:, None]
        network.add(prediction.network * depth, prediction.batch)
        if module.field is not None:
            field.add(prediction.field * depth, prediction.batch)
            totals.add(prediction)
    module.dispersion.copy_(network.size())
    if module.field is not None:
        module.field.dispersion.copy_(field.size())
        module.field.disagreement.copy_(totals.disagreement())
        module.field.shift.copy_(totals.shift())
        module.field.fit_detection(_field_blocks(module, data, blocks))
    _fit_detected(module, data)


def _blocks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(rows, max(1, len(rows) // _BLOCK_SPOTS))


def _field_blocks(
    module: LGDiSTModule, data: NeighborhoodDataModule, blocks: list[NDArray]
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Log rates of the field without the own counts, with their minibatches."""
    assert module.field is not None
    for block in blocks:
        gathered = data.view.gather(block, folds=True)
        todo = [part for part in passes(gathered.observed) if part.of_visible]
        batch = gathered.to(module.device)
        log_rate = torch.zeros_like(batch.counts)
        for part in todo:
            left_out, genes = part.left_out.to(module.device), part.genes.to(module.device)
            predicted = module.field(batch, batch.observed & ~left_out, module.share, genes, part.part).log_rate
            log_rate[:, genes] = torch.where(batch.observed[:, genes], predicted, 0)
        yield log_rate, batch


def _fit_shares(module: LGDiSTModule, data: NeighborhoodDataModule, similar: SimilarSpots | None) -> None:
    """Set the share of the field beside the network, and the weight of similar spots, by the Poisson deviance of held-out counts.

    So the network, which starts from less, is never listened to more than held-out entries support, and neither are similar spots.
    """
    field = module.field
    assert field is not None
    shares, scales = torch.linspace(0, 1, 21, dtype=torch.float64), torch.tensor(SIMILARITY_SCALES)
    away = torch.arange(len(scales), dtype=torch.float64)[:, None] - SIMILARITY_SCALES.index(EXPECTED_SCALE)
    deviance = _SHARE_PRIOR_WEIGHT * (shares - _SHARE_PRIOR).square() + _SCALE_PRIOR_WEIGHT * away.abs()
    for start in range(0, data.n_val, _BLOCK_SPOTS):
        rows = data.val_idx[start : start + _BLOCK_SPOTS]
        seen, held_out = data.view.gather(rows), data.held_out[rows].nonzero()
        counts = torch.from_numpy(np.asarray(data.truth.counts[rows][held_out], dtype=np.float64).ravel())
        batch = seen.to(module.device)
        visible = module.condition.visible(batch)
        with torch.no_grad():
            network = module.decode(module.encode(batch, visible).centre, batch).log_rate
        alone = field(batch, visible, module.share).log_rate
        # On the CPU, in double precision, which not every device has.
        log_depth = seen.depth.double().log()[:, None]
        network, alone = ((rate.cpu().double() + log_depth)[held_out] for rate in (network, alone))
        ratios = [torch.zeros(())] * len(scales)
        if similar is not None:
            sums, pseudo_counts = similar.sums(rows, kind=0)[..., *held_out], similar.pseudo_counts[:, held_out[1]]
            ratios = [log_ratio(sums, scale * pseudo_counts) for scale in SIMILARITY_SCALES]
        for i, ratio in enumerate(ratios):
            log_mean = network + shares[:, None] * (alone + ratio - network)
            deviance[i] += (log_mean.exp() - counts * log_mean).sum(1)
    best = deviance.flatten().argmin(dim=0, keepdim=True)
    field.mixing.copy_(shares[best % len(shares)][0])
    field.similarity.mul_(scales[best // len(shares)].to(field.similarity))
    if similar is not None:
        similar.pseudo_counts = field.similarity.cpu()


@torch.no_grad()
def _fit_gain(
    module: LGDiSTModule, data: NeighborhoodDataModule, similar: SimilarSpots, rows: NDArray[np.int64]
) -> None:
    """Set the gain with which each gene's total, with what similar spots say, is the one that was counted.

    Similar spots raise totals: they are listened to most where a gene is high. By how much is seen in some spots, and how far the
    field alone is from the counts in all.
    """
    field = module.field
    assert field is not None
    alone, both = (torch.zeros_like(field.gain) for _ in range(2))
    for block in _blocks(rows):
        batch = data.view.gather(block).to(module.device)
        visible = module.condition.visible(batch)
        rate = field(batch, visible, module.share).log_rate.exp() * batch.depth[:, None] * visible
        both += rate.sum(0)
        alone += (rate * (-batch.similar[:, 0]).exp()).sum(0)
    counted, expected = (total.to(field.gain) for total in similar.totals())
    counted, expected, alone, both = (total + _PSEUDO_COUNT for total in (counted, expected, alone, both))
    field.gain.copy_((counted / expected * alone / both).log())


def _fit_detected(module: LGDiSTModule, data: NeighborhoodDataModule) -> None:
    """Regress log values of detected held-out entries on the predictions of network and field."""
    n_parts = 1 if module.field is None else 2
    prior = torch.tensor([0.0, *(_DETECTED_PRIOR if n_parts == 2 else (1.0,))], dtype=torch.float64)
    penalty = torch.diag(torch.tensor([1e-3] + n_parts * [_DETECTED_PRIOR_ENTRIES], dtype=torch.float64))
    products, targets = penalty.clone(), penalty @ prior
    for seen, counts, held_out in data.val_dataloader():
        batch = seen.to(module.device)
        visible = module.condition.visible(batch)
        with torch.no_grad():
            parts = [module.decode(module.encode(batch, visible).centre, batch).detected]
        if module.field is not None:
            parts.append(module.field(batch, visible, module.share).detected)
        # On the CPU, in double precision, which not every device has.
        weight = (module.gene_weight.cpu() * (held_out & (counts > 0))).double().flatten()
        x = torch.stack([torch.ones_like(parts[0]), *parts], dim=-1).cpu().double().flatten(0, 1)
        weighted = (x * weight[:, None]).T
        y = log_normalise(counts, seen.depth).double().flatten()
        products, targets = products + weighted @ x, targets + weighted @ y
    module.detected_calibration[: n_parts + 1] = torch.linalg.solve(products, targets).float()
