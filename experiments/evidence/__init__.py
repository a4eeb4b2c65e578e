"""Stored results of runs on GPUs, and the tools that write them. The package and the image do not contain them."""
