"""Changes between runs: facts and figures of rows, and figures that changed beyond their noise."""
