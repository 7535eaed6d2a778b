"""Image embedding without weights: statistics of stain and texture at several scales."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# Optical densities of haematoxylin, eosin and a residual in red, green and blue (Ruifrok and Johnston, 2001).
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_WINDOWS = (1, 2, 4)
"""Sides of the windows in quarters of the patch, around its centre."""
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_N_BANDS = 4
"""Texture bands: detail of 1 to 2 pixels, 2 to 4, and so on."""


class StainDescriptor(nn.Module):
    """Embeds patches by their amounts of haematoxylin, eosin and overall density, and the variation of these.

    For windows of a quarter, a half and the whole of the patch: mean, standard deviation and five quantiles of each of
    four densities (haematoxylin, eosin, residual, overall), and the mean absolute detail of three of them in four bands
    of a Laplacian pyramid. It needs no weights and no network. It is designed
    for haematoxylin and eosin, whose densities come from colour deconvolution, but works for any stain.

    Raises
    ------
    ValueError
        If it is called with patches of fewer than 16 pixels per side.

    References
    ----------
    Stains and their separation: :cite:t:`ruifrok2001deconvolution`; the residual has the direction of their third
    stain, DAB.

    Examples
    --------
    >>> import torch
    >>> describe = lgdist_scvi.pp.StainDescriptor()
    >>> describe(torch.rand(2, 3, describe.n_pixels, describe.n_pixels)).shape
    torch.Size([2, 120])
    """

    n_pixels = 128
    """Side of the patches it is designed for, in pixels."""
    unmix: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        stains = F.normalize(torch.tensor(_STAINS, dtype=torch.float64), dim=1)
        self.register_buffer("unmix", torch.linalg.inv(stains).float())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Describe patches.

        Parameters
        ----------
        patches
            Red, green and blue from 0 to 1, ``(n_patches, 3, n_pixels, n_pixels)``.

        Returns
        -------
        Features, ``(n_patches, 120)``: optical densities (natural log, no unit).

        Raises
        ------
        ValueError
            If the patches have fewer than 16 pixels per side.

        Examples
        --------
        >>> import torch
        >>> lgdist_scvi.pp.StainDescriptor().forward(torch.ones(1, 3, 64, 64)).shape
        torch.Size([1, 120])
        """
        if min(patches.shape[-2:]) < 2**_N_BANDS:
            raise ValueError(
                f"The patches have {tuple(patches.shape[-2:])} pixels; n_pixels must be {2**_N_BANDS} or more."
            )
        density = -torch.log((patches * 255 + 1) / 256)
        stains = torch.einsum("bcyx,cs->bsyx", density, self.unmix)
        channels = torch.cat([stains, density.mean(dim=1, keepdim=True)], dim=1)
        bands = _bands(channels[:, [0, 1, 3]])
        quantiles = torch.tensor(_QUANTILES, device=patches.device)
        features = []
        for window in _WINDOWS:
            values = _window(channels, window)
            features += [values.mean(dim=2), values.std(dim=2)]
            features.append(torch.quantile(values, quantiles, dim=2).movedim(0, 2).flatten(1))
            features += [_window(band, window).mean(dim=2) for band in bands]
        return torch.cat(features, dim=1)


def _window(images: torch.Tensor, quarters: int) -> torch.Tensor:
    """Pixels of the central window, `quarters` quarters of the patch wide, ``(n_patches, n_channels, n_pixels)``."""
    side = images.shape[-1]
    size = max(2, side * quarters // 4)
    start = (side - size) // 2
    return images[..., start : start + size, start : start + size].flatten(2)


def _bands(images: torch.Tensor) -> list[torch.Tensor]:
    """Absolute detail of a Laplacian pyramid, finest first."""
    bands = []
    for _ in range(_N_BANDS):
        coarse = F.avg_pool2d(images, 2)
        smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear")
        bands.append((images - smooth).abs())
        images = coarse
    return bands
