"""Reports of a run: verdict.json, report.json, junit.xml, report.html and SHA256SUMS in the run's folder."""

from experiments.report.compare import Comparison, compare, comparison_table
from experiments.report.content import Report
from experiments.report.write import Reevaluation, WrittenReport, reevaluate, reevaluate_together, write_report

__all__ = [
    "Comparison",
    "Reevaluation",
    "Report",
    "WrittenReport",
    "compare",
    "comparison_table",
    "reevaluate",
    "reevaluate_together",
    "write_report",
]
