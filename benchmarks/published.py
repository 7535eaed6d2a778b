"""The configuration of the paper (arXiv 2509.01864), rebuilt from its description to be timed; it is not trained.

An autoencoder of width 512 with four layers of one head over a spot and its six neighbours, and a diffusion transformer of
width 1,024 with twelve layers of sixteen heads, which denoises seven codes of 128 in fifty steps.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lgdist_scvi.module._schedule import NoiseSchedule

N_TOKENS, N_LATENT, N_STEPS, N_TRAINING_STEPS = 7, 128, 50, 1500


class Autoencoder(nn.Module):
    """Codes of the tokens of a neighbourhood, and expression from the code of the first."""

    def __init__(self, n_genes: int, n_hidden: int = 512) -> None:
        super().__init__()
        self.embed = nn.Linear(n_genes, n_hidden)
        self.position = nn.Parameter(torch.zeros(N_TOKENS, n_hidden))
        layer = nn.TransformerEncoderLayer(n_hidden, nhead=1, dim_feedforward=n_hidden, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.code = nn.Sequential(nn.LayerNorm(n_hidden), nn.Linear(n_hidden, N_LATENT), nn.Tanh())
        self.decode = nn.Sequential(nn.Linear(N_LATENT, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_genes))

    def encode(self, expression: torch.Tensor) -> torch.Tensor:
        """Codes ``(b, 7, 128)`` of log values ``(b, 7, g)``."""
        return self.code(self.layers(self.embed(expression).tanh() + self.position))


class Block(nn.Module):
    """Transformer layer modulated token by token."""

    def __init__(self, n_hidden: int, n_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(n_hidden, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(n_hidden, n_heads, batch_first=True)
        self.forward_ = nn.Sequential(nn.Linear(n_hidden, 4 * n_hidden), nn.GELU(), nn.Linear(4 * n_hidden, n_hidden))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(n_hidden, 6 * n_hidden))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Update tokens given their conditions, both ``(b, 7, h)``."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(condition).chunk(6, dim=-1)
        normed = self.norms[0](tokens) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + gate_f * self.forward_(self.norms[1](tokens) * (1 + scale_f) + shift_f)


class Denoiser(nn.Module):
    """Noise in the codes of a neighbourhood, given the neighbours' codes and the time."""

    def __init__(self, n_hidden: int = 1024, n_layers: int = 12, n_heads: int = 16) -> None:
        super().__init__()
        self.schedule = NoiseSchedule(N_TRAINING_STEPS)
        self.noisy, self.condition = nn.Linear(N_LATENT, n_hidden), nn.Linear(N_LATENT, n_hidden)
        self.position = nn.Parameter(torch.zeros(N_TOKENS, n_hidden))
        self.time = nn.Sequential(nn.Linear(1, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden))
        self.blocks = nn.ModuleList(Block(n_hidden, n_heads) for _ in range(n_layers))
        self.out = nn.Sequential(nn.LayerNorm(n_hidden), nn.Linear(n_hidden, N_LATENT))

    def forward(self, noisy: torch.Tensor, condition: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Estimate noise ``(b, 7, 128)``; the centre of `condition` is blank."""
        time = self.time(t[:, None].float() / N_TRAINING_STEPS)[:, None]
        tokens, condition = self.noisy(noisy) + self.position, self.condition(condition) + time
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.out(tokens)


@torch.no_grad()
def complete(autoencoder: Autoencoder, denoiser: Denoiser, expression: torch.Tensor) -> torch.Tensor:
    """Sample the codes of spots from their neighbours in fifty steps, and decode them; ``(b, g)`` from ``(b, 7, g)``."""
    condition = _without_centre(autoencoder.encode(_without_centre(expression)))
    noisy = torch.randn_like(condition)
    schedule = denoiser.schedule
    times = schedule.respaced(N_STEPS).tolist()
    for time, following in zip(times, [*times[1:], None], strict=True):
        t = torch.full((len(noisy),), time, device=noisy.device)
        noise = denoiser(noisy, condition, t)
        clean = ((noisy - schedule.sigma(t, 3) * noise) / schedule.alpha(t, 3)).clamp(-1, 1)
        if following is not None:
            noisy = schedule.add_noise(clean, torch.randn_like(noisy), torch.full_like(t, following))
    return autoencoder.decode(clean[:, 0])


def training_losses(autoencoder: Autoencoder, denoiser: Denoiser, expression: torch.Tensor) -> list[torch.Tensor]:
    """Loss of one step of each phase, for spots ``(b, 7, g)``."""
    reconstruction = F.mse_loss(autoencoder.decode(autoencoder.encode(expression)[:, 0]), expression[:, 0])
    with torch.no_grad():
        codes = autoencoder.encode(expression)
    noise, t = torch.randn_like(codes), torch.randint(N_TRAINING_STEPS, (len(codes),), device=codes.device)
    predicted = denoiser(denoiser.schedule.add_noise(codes, noise, t), _without_centre(codes), t)
    return [reconstruction, F.mse_loss(predicted[:, 0], noise[:, 0])]


def _without_centre(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, 1:]], dim=1)
