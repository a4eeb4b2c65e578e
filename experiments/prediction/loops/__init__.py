"""Small training programs, one for each usual training loop. They are traced or measured like any other script."""
