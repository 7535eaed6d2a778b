"""Domains of a tissue, and the audit of completed layers of any method."""

from ._audit import audit
from ._domains import domains
from ._prepare import prepare_audit

__all__ = ["audit", "domains", "prepare_audit"]
