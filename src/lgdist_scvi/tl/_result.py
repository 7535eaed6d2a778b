"""What an audit finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AuditResult:
    """Answers of an audit, as tables and as one page."""

    layer: str
    """Name of the layer."""
    title: str
    """What was audited, in words."""
    summary: pd.DataFrame
    """One row for each answer: question, detail, value, what it should be, whether it is fine, and a verdict in words."""
    genes: pd.DataFrame
    """One row for each gene."""
    regions: pd.DataFrame
    """One row for each gene and region: counts, and log ratios to the section."""
    null_tests: pd.DataFrame
    """One row for each decoy and region: p-values of completed values and of counts."""
    correlations: pd.DataFrame
    """One row for each pair of genes: correlation of completed values, and without noise."""

    @property
    def failed(self) -> list[str]:
        """Questions with an answer that is not fine, in the order of the summary."""
        wrong = self.summary["fine"].eq(False).fillna(False)
        return list(dict.fromkeys(self.summary["question"][wrong]))

    @property
    def _closing(self) -> str:
        asked = list(dict.fromkeys(self.summary["question"][self.summary["fine"].notna()]))
        told = f"Not as it should be: {', '.join(self.failed)}." if self.failed else "All of them as they should be."
        return f"{len(asked)} of {self.summary['question'].nunique()} questions could be answered. {told}"

    def _table(self) -> pd.DataFrame:
        shown = self.summary.drop(columns="fine")
        shown["value"] = [f"{value:.3g}" if value == value else "" for value in shown["value"]]
        shown["question"] = shown["question"].where(~shown["question"].duplicated(), "")
        return shown

    def __str__(self) -> str:
        shown = self._table()
        lines = [list(shown.columns), *shown.to_numpy().tolist()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, "", *rows, "", self._closing])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from html import escape

        table = self._table().to_html(index=False, justify="left", border=0)
        return f"<p>{escape(self.title)}</p>\n{table}\n<p>{escape(self._closing)}</p>"
