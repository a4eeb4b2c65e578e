"""Write the reports of a run: verdict.json, report.json, junit.xml, report.html and SHA256SUMS in the run's folder."""
