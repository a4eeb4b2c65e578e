"""The history of runs: a SQLite database of measured values and verdicts, changes between runs, and pages of trends."""
