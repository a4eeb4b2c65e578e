"""What a run showed: verdict.json, report.json, junit.xml, report.html and SHA256SUMS in the run's folder."""

from experiments.report.compare import Comparison, compare, comparison_table
from experiments.report.content import Report
from experiments.report.write import Reevaluated, WrittenReport, reevaluate, write_report

__all__ = [
    "Comparison",
    "Reevaluated",
    "Report",
    "WrittenReport",
    "compare",
    "comparison_table",
    "reevaluate",
    "write_report",
]
