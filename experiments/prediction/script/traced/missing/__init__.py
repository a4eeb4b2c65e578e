"""What a traced script needs and this computer lacks: made up on request, else named when the script fails."""
