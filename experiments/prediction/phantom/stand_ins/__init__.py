"""Packages that scripts can import in place of libraries with compiled kernels. This folder is on Python's path."""
