"""Exceptions that the user causes."""

from collections.abc import Iterable
from difflib import get_close_matches

SIMILAR = 0.75
"""Least likeness, from 0 to 1, of a name that is suggested."""


class InputError(ValueError):
    """A user error: the message is one line that names the wrong value, its location and the allowed values.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """Ctrl-C or a signal stopped the command. Finished rows keep their results; exit code 130."""


def unknown(what: str, value: object, allowed: Iterable[object], where: str = "") -> InputError:
    """Return the InputError for a name that is not among ``allowed``; it suggests the most similar one."""
    place, names = f"{where}: " if where else "", [str(name) for name in allowed]
    near = nearest(str(value), names)
    meant = f"; did you mean {near}?" if near else ""
    return InputError(f"{place}unknown {what} {value!r}; allowed: {', '.join(names)}{meant}")


def nearest(name: str, allowed: Iterable[object]) -> str:
    """Return the allowed names that begin with ``name``, else the most similar one; "" if none is similar."""
    names = [str(one) for one in allowed]
    longer = [one for one in names if name and one.startswith(name)]
    return " or ".join(longer or get_close_matches(name, names, 1, SIMILAR))
