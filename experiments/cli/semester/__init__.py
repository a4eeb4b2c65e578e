"""Commands about the runs of a semester: their history, and the archives that students hand in."""
