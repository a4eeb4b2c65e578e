"""Rows of this machine in containers of the project's image, as on leased nodes."""
