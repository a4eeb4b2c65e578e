"""Exceptions for user errors and interruptions."""

from collections.abc import Iterable
from difflib import get_close_matches

MIN_SIMILARITY = 0.75
"""How similar an allowed name must be to an unknown name, so that a message suggests it: difflib's ratio, 0 to 1."""


class InputError(ValueError):
    """A user error: the message is one line that names the wrong value, its location and the allowed values.

    The command line prints the message without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """Ctrl-C or a signal stopped the command. Finished rows keep their results. The command exits with code 130."""


def unknown_name_error(what: str, value: object, allowed: Iterable[object], where: str = "") -> InputError:
    """Return the InputError for the name ``value``, which is not in ``allowed``. Its message suggests similar names.

    what: the kind of the name, such as 'card'. where: the place of the name, such as an option; "" adds no place.
    """
    location, names = f"{where}: " if where else "", [str(name) for name in allowed]
    similar = similar_names(str(value), names)
    suggestion = f"; did you mean {similar}?" if similar else ""
    return InputError(f"{location}unknown {what} {value!r}; allowed: {', '.join(names)}{suggestion}")


def similar_names(name: str, allowed: Iterable[object]) -> str:
    """Return the allowed names that begin with ``name``, joined by "or".

    If there are none, return the most similar name, or "" if no name is similar enough.
    """
    names = [str(one) for one in allowed]
    longer = [one for one in names if name and one.startswith(name)]
    return " or ".join(longer or get_close_matches(name, names, 1, MIN_SIMILARITY))
