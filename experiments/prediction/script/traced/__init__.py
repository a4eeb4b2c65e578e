"""Code that runs in the process of a traced script, with PyTorch. Only traced processes import this code."""
