"""What a change between runs is: the facts and figures of a row, and figures that moved beyond their noise."""
