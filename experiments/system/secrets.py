"""Hide secrets in texts before they are shown or stored: passwords and signatures in URLs, notification addresses."""

import re
from collections.abc import Sequence

NOTIFY_OPTION = "--notify"
URL_LOGIN = re.compile(r"(\w://)[^\s/@]+@")
URL_QUERY = re.compile(r"(\w://[^\s?'\"]+\?)[^\s'\"]+")


def hide_secrets(text: str) -> str:
    """Return ``text`` with the login and the query of each URL replaced by ***."""
    return URL_QUERY.sub(r"\1***", URL_LOGIN.sub(r"\1***@", text))


def hide_in_command(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without secrets, so that it can be stored."""
    shown = [f"{NOTIFY_OPTION}=***" if word.startswith(f"{NOTIFY_OPTION}=") else hide_secrets(word) for word in words]
    return ["***" if before == NOTIFY_OPTION else word for before, word in zip(["", *shown], shown, strict=False)]
