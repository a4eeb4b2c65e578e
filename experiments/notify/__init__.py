"""Notifications: a run has finished, a statement has flipped, a lease ends soon."""
