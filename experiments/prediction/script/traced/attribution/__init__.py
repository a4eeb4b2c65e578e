"""The modules and the lines of the script to which memory belongs."""
