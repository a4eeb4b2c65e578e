"""The history of runs: a SQLite database of figures and verdicts, changes between runs, and pages of trends."""
