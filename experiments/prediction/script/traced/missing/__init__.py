"""Files that a traced script needs and this computer lacks: they are made up on request, or an error names them."""
