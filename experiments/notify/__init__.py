"""Messages to those who want to know: a run has finished, a row has changed, a lease ends soon."""
