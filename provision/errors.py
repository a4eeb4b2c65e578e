"""What can go wrong with machines.

ProvisionError
├── UnknownSite         no site has that name
├── UnknownDevices      CUDA_VISIBLE_DEVICES names a GPU that the machine does not have
├── NoSuchHost          no host has the type, name or hardware that is wanted
└── BadTime             a length, a time, hours of the day or a zone that cannot be read or is not allowed

Every message is one line for a person.
"""

from collections.abc import Iterable
from difflib import get_close_matches

NEAREST = 3


class ProvisionError(Exception):
    """Base of everything that this package raises."""


class UnknownSite(ProvisionError):
    """No site has that name; the message lists those there are."""


class UnknownDevices(ProvisionError):
    """CUDA_VISIBLE_DEVICES names a GPU that the machine does not have; the message lists those it has."""


class NoSuchHost(ProvisionError):
    """No host has the type, name or hardware that is wanted; the message says what is nearest to it."""


class BadTime(ProvisionError):
    """A length, a time, hours of the day or a zone that cannot be read or is not allowed; the message says what is."""


def nearest(value: str, names: Iterable[str]) -> str:
    """The ``NEAREST`` names that are spelled most like ``value``, in one line; of a/b the part b counts as well."""
    spelled = {key.casefold(): name for name in sorted(names) for key in (name.rpartition("/")[2], name)}
    keys = get_close_matches(value.casefold(), spelled, n=2 * NEAREST, cutoff=0)
    return ", ".join(list(dict.fromkeys(spelled[key] for key in keys))[:NEAREST])
