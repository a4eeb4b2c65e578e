"""Changes between runs: facts and measured values of rows, and values that changed beyond their noise."""
