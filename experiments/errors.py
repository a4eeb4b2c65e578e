"""The exceptions that a person causes."""


class InputError(ValueError):
    """A user's mistake: the message is one line that names the value, where it stands and what is allowed.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """The command was told to stop, by Ctrl-C or by a signal. What had finished stays finished; exit code 130."""


def unknown(what: str, value: object, allowed: object, where: str = "") -> InputError:
    """Return the InputError for a name that is not among ``allowed`` (any iterable of names)."""
    place = f"{where}: " if where else ""
    return InputError(f"{place}unknown {what} {value!r}; allowed: {', '.join(map(str, allowed))}")  # type: ignore[call-overload]
