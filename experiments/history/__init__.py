"""The history of runs: a SQLite database of their figures and verdicts, what changed between them, pages of trends."""
