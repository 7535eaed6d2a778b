"""Audit of completed layers of any method."""

from ._audit import audit
from ._prepare import prepare_audit

__all__ = ["audit", "prepare_audit"]
