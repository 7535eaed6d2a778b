"""Encoders by name.

An encoder is a module made of :class:`~lgdist_scvi.module._autoencoder.Sizes` and a
:class:`~lgdist_scvi.module._scale.InputScale`. Its methods: ``surroundings(batch)`` encodes what does not depend on the
spots' own entries, ``forward(batch, visible, share, around)`` returns :class:`~lgdist_scvi.module._autoencoder.Codes`, and
``make_decoder(sizes)`` makes the decoder that goes with it.
"""

from __future__ import annotations

from ._autoencoder import NeighborhoodEncoder

ENCODERS: dict[str, type] = {"neighborhood": NeighborhoodEncoder}
"""Encoders that :class:`~lgdist_scvi.LGDiSTModule` knows."""
