"""What was made up for the script, and what is missing."""

FLAG = "--fake-weights"
_allowed: list[bool] = [False]
_notes: dict[str, None] = {}
_EXPLANATION = "testbed_explanation"


def allow() -> None:
    """Make up what is missing from now on."""
    _allowed[0] = True


def allowed() -> bool:
    """Return whether what is missing may be made up."""
    return _allowed[0]


def add_note(line: str) -> None:
    """Add a note to the prediction; the same note is added once."""
    _notes[line] = None


def notes() -> list[str]:
    """Return the notes in their order."""
    return list(_notes)


def explain(error: BaseException, line: str) -> None:
    """Store with the error what is missing and what to do, in place of an earlier explanation."""
    setattr(error, _EXPLANATION, f"missing: {line}")


def explanation(error: BaseException) -> str:
    """Return what is missing and what to do; "" if no one has explained the error."""
    return str(getattr(error, _EXPLANATION, ""))
