"""Reports of a run: verdict.json, report.json, junit.xml, report.html and SHA256SUMS in the run's folder."""

from experiments.report.archive import write_archive
from experiments.report.compare import Comparison, compare
from experiments.report.content import Report
from experiments.report.pages.comparison import write_comparison
from experiments.report.pages.index import write_index
from experiments.report.write import Reevaluation, WrittenReport, reevaluate, reevaluate_together, write_report

__all__ = [
    "Comparison",
    "Reevaluation",
    "Report",
    "WrittenReport",
    "compare",
    "reevaluate",
    "reevaluate_together",
    "write_archive",
    "write_comparison",
    "write_index",
    "write_report",
]
