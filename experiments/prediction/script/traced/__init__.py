"""Code that runs in the process of a traced script, with PyTorch. No other code imports it."""
