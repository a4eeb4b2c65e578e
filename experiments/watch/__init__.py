"""A live view of a run, in the terminal or in a browser: read-only, from the files of the run's folder."""
