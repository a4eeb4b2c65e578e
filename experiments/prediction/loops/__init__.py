"""Small programs: one for each common training loop, and one for text generation.

A prediction runs such a program on the simulated GPU, like a user's script. Benchmarks measure it on a real GPU.
"""
