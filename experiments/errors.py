"""Exceptions that the user causes."""


class InputError(ValueError):
    """A user error: the message is one line that names the wrong value, its location and the allowed values.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """Ctrl-C or a signal stopped the command. Finished rows keep their results; exit code 130."""


def unknown(what: str, value: object, allowed: object, where: str = "") -> InputError:
    """Return the InputError for a name that is not among ``allowed`` (any iterable of names)."""
    place = f"{where}: " if where else ""
    return InputError(f"{place}unknown {what} {value!r}; allowed: {', '.join(map(str, allowed))}")  # type: ignore[call-overload]
