"""Send messages to the addresses that a user chose, by apprise: mail, chat, webhooks. Addresses are secrets."""

import logging
import os
import re
from collections.abc import Sequence

from experiments.errors import InputError
from experiments.system.packages import require_packages

NOTIFY = "TESTBED_NOTIFY"
OPTION = "--notify"
ADDRESSES_HELP = "https://appriseit.com/services has the form of addresses"


class Notifier:
    """Sends messages to addresses: those given and those of TESTBED_NOTIFY, which are separated by spaces.

    Raises InputError for an address that apprise does not know; no message, log or error has an address, because
    addresses contain passwords.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = [*addresses, *os.environ.get(NOTIFY, "").split()]
        if not self._addresses:
            return
        require_packages("apprise")
        import apprise

        logging.getLogger("apprise").disabled = True
        self._services = [apprise.Apprise.instantiate(address) for address in self._addresses]
        for number, service in enumerate(self._services, 1):
            if service is None:
                kind = re.match(r"[a-z]+(?=://)", self._addresses[number - 1])
                shown = f"{kind[0]}://…" if kind else "…"
                raise InputError(
                    f"{OPTION}: address {number} ({shown}) is not one that apprise knows; {ADDRESSES_HELP}"
                )

    @property
    def wanted(self) -> bool:
        """Return whether there is an address."""
        return bool(self._addresses)

    def send(self, title: str, text: str) -> str:
        """Send a message to all addresses; return a line that says how many did not get it, empty if all did."""
        if not self.wanted:
            return ""
        failed = sum(not _sent(service, title, text) for service in self._services)
        return f"notification: {failed} of {len(self._services)} addresses not reached" if failed else ""


def _sent(service: object, title: str, text: str) -> bool:
    """Send by one service. A service that breaks must not break a run that took hours."""
    try:
        return bool(service.notify(body=text, title=title))  # type: ignore[attr-defined]
    except Exception:
        return False


def without_addresses(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the values of --notify replaced, so that it can be stored."""
    shown = [f"{OPTION}=***" if word.startswith(f"{OPTION}=") else word for word in words]
    return ["***" if before == OPTION else word for before, word in zip(["", *shown], shown, strict=False)]
