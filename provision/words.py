"""Texts for numbers of items."""


def number_with_noun(number: int, noun: str) -> str:
    """Return a number with the name of what it counts, in the plural unless it is 1: '1 row', '15 rows'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
