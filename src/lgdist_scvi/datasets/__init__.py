"""Data for examples and tests."""

from ._examples import example_tissue
from ._simulated import simulated_tissue

__all__ = ["example_tissue", "simulated_tissue"]
