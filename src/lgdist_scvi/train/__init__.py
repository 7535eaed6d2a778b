"""Training plans of the two phases."""

from ._plans import AutoencoderPlan, DiffusionPlan

__all__ = ["AutoencoderPlan", "DiffusionPlan"]
