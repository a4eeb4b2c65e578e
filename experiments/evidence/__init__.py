"""Stored results of runs on GPUs, and the tools that write them. Neither the package nor the image contains them."""
