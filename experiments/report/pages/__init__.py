"""HTML pages that need no network: a run, an index of runs, a comparison, a notebook, a script's prediction."""
