"""What can go wrong with machines.

ProvisionError
├── UnknownSite         no site has that name
├── UnknownDevices      CUDA_VISIBLE_DEVICES names a GPU that the machine does not have
├── NoSuchHost          no host has the type, name or hardware that is wanted
├── BadTime             a length, a time, hours of the day or a zone that cannot be read or is not allowed
├── BadName             a name that a site would not take, or that no kept lease has
├── BadKey              an SSH key file that is not there or is no key
├── NoCredentials       no account is configured, or keystone refuses it
├── NotOurs             a lease of that name is there that this program did not make
├── HeldOtherwise       a lease of that name is held with other hosts than are asked for
├── BadJournal          the ledger cannot be read
└── SiteError           the site, not the person
    ├── Unreachable         a service does not answer, or with an error of its own; may pass
    ├── Refused             a service refuses what was asked
    ├── NotEnough           the hosts wanted are not free then; the message has the earliest that are
    ├── NoAddress           no floating IP is free
    ├── ExtensionRefused    the lease cannot be made longer
    ├── LeaseFailed         the lease ended in ERROR, or did not start
    ├── LeaseGone           the lease is not there any more: deleted by others, or over
    ├── BootFailed          a server ended in ERROR or did not boot in time; the message has the site's reason
    ├── NotReached          a machine cannot be reached by SSH
    │   ├── LoginRefused        it refuses the key
    │   ├── BadHostKey          it shows another host key than the one that is kept, or one that nobody vouched for
    │   └── LineCut             the line broke while a command ran; whether it did its work is not known
    ├── CommandFailed       a command on a machine ended badly
    ├── TimedOut            a command on a machine did not end in its time
    ├── ConfigureFailed     setting a machine up failed; the message names machine, task and what it said
    └── NotReleased         something is still there after it was released

Every message is one line for a person. A SiteError ends a command with exit code 3, the others with 2.
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


class BadName(ProvisionError):
    """A name that a site would not take, or that no kept lease has."""


class BadKey(ProvisionError):
    """An SSH key file that is not there or is no key."""


class NoCredentials(ProvisionError):
    """No account is configured, or keystone refuses it."""


class NotOurs(ProvisionError):
    """A lease of that name is there that this program did not make; it is left alone."""


class HeldOtherwise(ProvisionError):
    """A lease of that name is held with other hosts than are asked for; it stays as it is."""


class BadJournal(ProvisionError):
    """The ledger cannot be read: not written by this version, or damaged."""


class SiteError(ProvisionError):
    """What the site would not or could not do."""


class Unreachable(SiteError):
    """A service does not answer, or with an error of its own. Whether it did what was asked is not known."""


class Refused(SiteError):
    """A service refuses what was asked."""


class NotEnough(SiteError):
    """The hosts that are wanted are not free then."""


class NoAddress(SiteError):
    """No floating IP is free, and none can be had."""


class ExtensionRefused(SiteError):
    """The lease cannot be made longer."""


class LeaseFailed(SiteError):
    """The lease ended in ERROR, or did not start."""


class LeaseGone(SiteError):
    """The lease is not there any more: deleted by others, or over."""


class BootFailed(SiteError):
    """A server ended in ERROR or did not boot in time."""


class NotReached(SiteError):
    """A machine cannot be reached by SSH; may pass."""


class LoginRefused(NotReached):
    """The machine refuses the key."""


class BadHostKey(NotReached):
    """The machine shows another host key than the one that is kept, or one that nobody vouched for."""


class LineCut(NotReached):
    """The line broke while a command ran. Whether it did its work is not known."""


class CommandFailed(SiteError):
    """A command on a machine ended badly; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TimedOut(SiteError):
    """A command on a machine did not end in its time, and was ended."""


class ConfigureFailed(SiteError):
    """Setting a machine up failed; the message names machine, task, what it said and what to do."""


class NotReleased(SiteError):
    """Something is still there after it was released."""
