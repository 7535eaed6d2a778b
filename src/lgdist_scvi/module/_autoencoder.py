"""Autoencoder: a transformer encodes a neighbourhood as one code per token; a decoder maps the spot's code to rates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from lgdist_scvi.data._pooling import N_POOLS

from ._blocks import Attention, Dropout, KeysValues, feed_forward
from ._normalisation import log_value_of_one, visible_depth

if TYPE_CHECKING:
    from lgdist_scvi.data._batch import Batch

    from ._scale import InputScale


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder and its decoder, as :class:`~lgdist_scvi.LGDiSTModule` takes them."""

    n_genes: int
    n_image: int
    n_latent: int
    n_hidden: int
    n_layers: int
    n_heads: int
    dropout: float
    input_dropout: float


class Codes(NamedTuple):
    """Encoded neighbourhoods."""

    tokens: torch.Tensor
    """Code of every token, ``(n_spots, n_tokens, n_latent)``; the first is the spot's own."""
    mask: torch.Tensor
    """True where a token exists, ``(n_spots, n_tokens)``."""

    @property
    def centre(self) -> torch.Tensor:
        """Code of the spots themselves, ``(n_spots, n_latent)``."""
        return self.tokens[:, 0]


class Surroundings(NamedTuple):
    """Encoded neighbourhood, without the spot's own entries; independent of their mask."""

    own: torch.Tensor
    """Contribution of the image to the spot's own token, ``(n_spots, n_hidden)``; 0 without images."""
    known: list[KeysValues]
    """What each layer knows of the neighbours and of the pooled neighbourhoods."""
    codes: torch.Tensor
    """Their codes, ``(n_spots, n_tokens - 1, n_latent)``."""
    mask: torch.Tensor
    """True where a token exists, ``(n_spots, n_tokens)``."""


class Rates(NamedTuple):
    """Decoded expression of a minibatch."""

    log_rate: torch.Tensor
    """Log of the expected share of the gene in the spot's depth, ``(n_spots, n_genes)``."""
    detected: torch.Tensor
    """Expected log1p of the normalised count, given that it is not zero, ``(n_spots, n_genes)``."""


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, n_hidden: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.attention = Attention(n_hidden, n_heads)
        self.forward_norm = nn.LayerNorm(n_hidden)
        self.forward_ = feed_forward(n_hidden, dropout)
        self.dropout = Dropout(dropout)

    def keys_values(self, tokens: torch.Tensor) -> KeysValues:
        """What can be attended to in ``(n_spots, n_tokens, n_hidden)``."""
        return self.attention.keys_values(self.attention_norm(tokens))

    def forward(self, tokens: torch.Tensor, keys_values: KeysValues, mask: torch.Tensor) -> torch.Tensor:
        """Update ``(n_spots, n_tokens, n_hidden)`` by what is attended to; what `mask` marks False is not."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), keys_values, mask))
        return tokens + self.dropout(self.forward_(self.forward_norm(tokens)))


class RateDecoder(nn.Module):
    """Decodes the code of a spot to rates of all genes, starting from the pooled neighbourhood.

    Parameters
    ----------
    sizes
        Sizes of the network.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        n_genes, n_latent, n_hidden = sizes.n_genes, sizes.n_latent, sizes.n_hidden
        self.network = nn.Sequential(nn.Linear(n_latent, 2 * n_hidden), nn.GELU(), Dropout(sizes.dropout))
        self.out = nn.Linear(2 * n_hidden, 2 * n_genes)
        self.linear = nn.Linear(n_latent, 2 * n_genes, bias=False)
        for layer in (self.out, self.linear):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        # Weights of 1 give the share among the nearest neighbours, weights of 0 the average over all spots.
        self.pooled_weight = nn.Parameter(torch.full((N_POOLS, n_genes), 0.5))
        self.detected_shift = nn.Parameter(torch.zeros(n_genes))
        self.detected_slope = nn.Parameter(torch.ones(n_genes))

    def forward(
        self, code: torch.Tensor, batch: Batch, share: torch.Tensor, genes: torch.Tensor | None = None
    ) -> Rates:
        """Decode codes ``(n_spots, n_latent)`` of the spots of `batch`, to rates of the given genes or of all."""
        chosen = slice(None) if genes is None else genes
        rows = slice(None) if genes is None else torch.cat([genes, genes + len(share)])
        shift = F.linear(self.network(code), self.out.weight[rows], self.out.bias[rows])
        shift = shift + F.linear(code, self.linear.weight[rows])
        rate_shift, detected_shift = shift.float().chunk(2, dim=-1)
        pooled = (batch.pooled[..., chosen] * self.pooled_weight[:, chosen]).sum(dim=1)
        log_rate = (share[chosen].log() + pooled + rate_shift).clamp(-25, 2)
        # A detected entry has at least one count; its log value exceeds that of one count by a softplus of the log expected count.
        log_expected = log_rate + batch.depth.clamp_min(1e-6).log()[:, None]
        above = F.softplus(self.detected_shift[chosen] + self.detected_slope[chosen] * log_expected + detected_shift)
        return Rates(log_rate, log_value_of_one(batch.depth) + above)


class NeighborhoodEncoder(nn.Module):
    """Encodes a spot, its neighbours, their images and pooled wider neighbourhoods into a code per token.

    Tokens of the same kind differ by content and distance only, not by their order.

    Parameters
    ----------
    sizes
        Sizes of the network; ``input_dropout`` is the share of the input that training drops beyond the masks.
    scale
        Standardisation of the input.
    """

    def __init__(self, sizes: Sizes, scale: InputScale) -> None:
        super().__init__()
        n_genes, n_hidden = sizes.n_genes, sizes.n_hidden
        self.expression = nn.Linear(n_genes, n_hidden)
        self.pooled = nn.ModuleList(nn.Linear(n_genes, n_hidden) for _ in range(N_POOLS))
        self.depth = nn.Linear(2, n_hidden)
        self.distance = nn.Linear(1, n_hidden)
        self.image = nn.Linear(sizes.n_image, n_hidden) if sizes.n_image else None
        self.kinds = nn.Parameter(0.02 * torch.randn(2 + N_POOLS, n_hidden))
        layers = (EncoderLayer(n_hidden, sizes.n_heads, sizes.dropout) for _ in range(sizes.n_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(n_hidden)
        self.code = nn.Linear(n_hidden, sizes.n_latent)
        self.input_dropout = Dropout(sizes.input_dropout)
        self.scale = scale

    def make_decoder(self, sizes: Sizes) -> RateDecoder:
        """Make the decoder that goes with this encoder."""
        return RateDecoder(sizes)

    def surroundings(self, batch: Batch) -> Surroundings:
        """Encode the neighbourhoods without the spots' own entries, which they are not to know of."""
        neighbors = self._expression(batch.neighbor_counts, batch.neighbor_observed, batch.neighbor_depth)
        neighbors = neighbors + self.distance(batch.neighbor_distance[..., None]) + self.kinds[1]
        own = neighbors.new_zeros(())
        if self.image is not None:
            image = self.image(self.input_dropout(self.scale.image(batch)))
            image = image * batch.image_mask[..., None]
            own, neighbors = image[:, 0], neighbors + image[:, 1:]
        pooled = self.input_dropout(self.scale.pooled(batch))
        tokens = [(embed(pooled[:, i]) + self.kinds[2 + i])[:, None] for i, embed in enumerate(self.pooled)]
        present = torch.ones((len(batch.depth), 1), dtype=torch.bool, device=batch.depth.device)
        mask = torch.cat([present, batch.neighbor_mask, present.expand(-1, N_POOLS)], dim=1)
        hidden = torch.cat([neighbors, *tokens], dim=1)
        first, *_ = layers = self._stack()
        known = [first.keys_values(hidden)]
        for layer, following in pairwise(layers):
            hidden = layer(hidden, known[-1], mask[:, 1:])
            known.append(following.keys_values(hidden))
        return Surroundings(own, known, self._codes(hidden), mask)

    def forward(
        self, batch: Batch, visible: torch.Tensor, share: torch.Tensor, around: Surroundings | None = None
    ) -> Codes:
        """Encode, using only the `visible` entries of the spots themselves.

        Parameters
        ----------
        batch
            Minibatch.
        visible
            True where an entry of the spot may be used, ``(n_spots, n_genes)``; nothing is read where it is False.
        share
            Expected share of each gene in the depth, ``(n_genes,)``.
        around
            The :meth:`surroundings` of `batch`, if known from another call.
        """
        around = self.surroundings(batch) if around is None else around
        counts = batch.counts * visible
        depth = visible_depth(batch, visible, share)
        fraction = visible.float().mean(dim=1)
        centre = self._expression(counts, visible, depth)
        centre = centre / fraction.clamp_min(0.05).sqrt()[:, None]
        # Without visible entries the depth is unknown or a guess.
        log_depth = torch.where((depth > 1) & (fraction > 0), self.scale.depth(depth), 0)
        centre = centre + self.depth(torch.stack([log_depth, fraction], dim=1)) + self.kinds[0] + around.own

        hidden = centre[:, None]
        for layer, others in zip(self._stack(), around.known, strict=True):
            own = layer.keys_values(hidden)
            keys, values = (torch.cat(parts, dim=2) for parts in zip(own, others, strict=True))
            hidden = layer(hidden, (keys, values), around.mask)
        return Codes(torch.cat([self._codes(hidden), around.codes], dim=1), around.mask)

    def _stack(self) -> list[EncoderLayer]:
        return cast("list[EncoderLayer]", list(self.layers))

    def _codes(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.code(self.norm(hidden))

    def _expression(self, counts: torch.Tensor, observed: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return self.expression(self.input_dropout(self.scale.expression(counts, observed, depth)))
