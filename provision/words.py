"""A number and the noun for what it counts, as text."""


def number_with_noun(number: int, noun: str) -> str:
    """Return a number and its noun, with an s unless the number is 1: '1 row', '15 rows'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
