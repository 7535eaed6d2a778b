"""Transformer parts shared by the autoencoder and the denoiser."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of tokens, each ``(n_spots, n_heads, n_tokens, n_hidden / n_heads)``."""


class Attention(nn.Module):
    """Multi-head attention of queries over a set of tokens.

    Parameters
    ----------
    n_hidden
        Width of the tokens.
    n_heads
        Number of heads; must divide `n_hidden`.
    """

    def __init__(self, n_hidden: int, n_heads: int) -> None:
        super().__init__()
        if n_hidden % n_heads:
            raise ValueError(f"n_hidden={n_hidden} must be a multiple of n_heads={n_heads}.")
        self.n_heads = n_heads
        self.query = nn.Linear(n_hidden, n_hidden)
        self.key_value = nn.Linear(n_hidden, 2 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def keys_values(self, tokens: torch.Tensor) -> KeysValues:
        """Keys and values of tokens ``(n_spots, n_tokens, n_hidden)``; reusable across queries."""
        keys, values = self.key_value(tokens).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, queries: torch.Tensor, keys_values: KeysValues, mask: torch.Tensor) -> torch.Tensor:
        """Attend from ``(n_spots, n_queries, n_hidden)`` to the tokens that `mask`, ``(n_spots, n_tokens)``, marks."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(queries)), *keys_values, attn_mask=mask[:, None, None, :]
        )
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Dropout(nn.Dropout):
    """Dropout that is fast on CPUs, where PyTorch draws one number at a time: one draw makes eight, of 256 values each."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Drop a random part of `values` in training, and scale up the rest."""
        if not self.training or values.device.type != "cpu":
            return super().forward(values)
        dropped = min(round(256 * self.p), 255)
        drawn = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(1 << 63), None)
        kept = drawn.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
        return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


def feed_forward(n_hidden: int, dropout: float) -> nn.Sequential:
    """Two-layer perceptron applied to each token."""
    return nn.Sequential(
        nn.Linear(n_hidden, 4 * n_hidden), nn.GELU(), Dropout(dropout), nn.Linear(4 * n_hidden, n_hidden)
    )
