"""Run rows on this machine in containers of the project's image, as on leased nodes."""
