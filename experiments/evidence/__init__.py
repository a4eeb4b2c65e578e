"""Stored results of runs on GPUs, and the tool that writes them; neither is in the package or in the image."""
