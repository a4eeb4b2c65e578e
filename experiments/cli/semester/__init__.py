"""Commands that look at the runs of a term: their history, and what students hand in."""
