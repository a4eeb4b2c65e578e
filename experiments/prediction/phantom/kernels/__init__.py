"""Replacements of compiled kernels: CUDA graphs, Triton, flash-attn and torchao."""
