"""The check before a semester: all suites with several sets of versions, and what has flipped since the last check."""
