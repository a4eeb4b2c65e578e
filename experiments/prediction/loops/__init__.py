"""Small training programs, one for each usual training loop, which are traced or measured like any other script."""
