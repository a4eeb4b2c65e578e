"""What a training program of this package states about itself while it is traced."""

_STATED: dict[str, str] = {}


def state_sample(words: str) -> None:
    """State in words what a sample is, such as 'a text of 512 tokens'."""
    _STATED["sample"] = words


def stated_sample() -> str:
    """Return what the program stated about a sample; empty: nothing."""
    return _STATED.get("sample", "")
