"""Example data."""

from ._simulated import simulated_tissue

__all__ = ["simulated_tissue"]
