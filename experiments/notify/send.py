"""Send messages by mail, chat or webhook to the user's addresses, with apprise. Addresses are secrets."""

import os
import re
from collections.abc import Sequence

from experiments.errors import InputError
from experiments.system.packages import require_packages
from experiments.system.secrets import NOTIFY_OPTION

NOTIFY_VARIABLE = "TESTBED_NOTIFY"
ADDRESSES_HELP = "allowed: the URLs that https://appriseit.com/services lists"


class Notifier:
    """Sends messages to the given addresses and to those of TESTBED_NOTIFY, which are separated by spaces.

    Raises InputError for an address that apprise does not know. Addresses contain passwords, so no message, log or
    error contains an address.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = [*addresses, *os.environ.get(NOTIFY_VARIABLE, "").split()]
        if not self._addresses:
            return
        require_packages("apprise")
        import logging

        import apprise

        logging.getLogger("apprise").disabled = True
        self._services = [apprise.Apprise.instantiate(address) for address in self._addresses]
        for number, service in enumerate(self._services, 1):
            if service is None:
                kind = re.match(r"[a-z]+(?=://)", self._addresses[number - 1])
                shown = f"{kind[0]}://…" if kind else "…"
                raise InputError(f"{NOTIFY_OPTION}: address {number} ({shown}) is unknown to apprise; {ADDRESSES_HELP}")

    @property
    def has_addresses(self) -> bool:
        """Return whether there is an address to send to."""
        return bool(self._addresses)

    def send(self, title: str, text: str) -> str:
        """Send a message to all addresses; return a line with the number of failed addresses, "" if there are none."""
        if not self.has_addresses:
            return ""
        failed = sum(not _try_to_send(service, title, text) for service in self._services)
        return f"notification: {failed} of {len(self._services)} addresses not reached" if failed else ""


def _try_to_send(service: object, title: str, text: str) -> bool:
    """Send a message by one service; return whether this succeeded. Raises no error, because it would end a run."""
    try:
        return bool(service.notify(body=text, title=title))  # type: ignore[attr-defined]
    except Exception:
        return False
