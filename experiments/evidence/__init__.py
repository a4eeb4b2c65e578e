"""Stored results of runs on GPUs, and the tool that writes them. The package and the image contain neither."""
