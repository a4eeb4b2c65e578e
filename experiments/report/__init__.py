"""What a run showed: verdict.json, report.json, junit.xml, report.html and SHA256SUMS in the run's folder."""

from experiments.report.compare import Comparison, compare, comparison_table
from experiments.report.content import Report
from experiments.report.write import Rejudged, WrittenReport, rejudge, write_report

__all__ = [
    "Comparison",
    "Rejudged",
    "Report",
    "WrittenReport",
    "compare",
    "comparison_table",
    "rejudge",
    "write_report",
]
