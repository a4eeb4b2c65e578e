"""Which package did it: a bisection of the pins between two environments, each step predicted or run."""
