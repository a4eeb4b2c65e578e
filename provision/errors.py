"""The errors of this package.

ProvisionError
├── UnknownSite         no site has that name
├── UnknownDevices      CUDA_VISIBLE_DEVICES names a GPU that the machine does not have
├── NoSuchHost          no host has the requested type, name or hardware
├── BadTime             a length, time, daily window or zone is malformed or not allowed
├── BadName             a site would reject the name, or nothing has this name
├── BadKey              an SSH key file is missing or is not a key
├── BadSshConfig        OpenSSH rejects the user's ssh configuration
├── NoCredentials       no account is configured, or its credential cannot be used for the lease
├── ForeignLease        a lease with that name exists that is not in the local journal
├── OtherAccount        the active lease with that name was made with another account
├── LeaseMismatch       the active lease with that name has other hosts than requested
├── BadJournal          the journal is damaged or of another version
├── PreflightCheckFailed         a preflight check found a problem; the message names the fix
└── SiteError           a failure of the site, not of the user
    ├── Unreachable         a service does not answer or has an internal error; often transient
    ├── RequestRejected     a service rejects a request
    ├── NotEnoughHosts      too few hosts are free at that time; the message names the earliest free slot
    ├── NoAddress           no floating IP is free
    ├── ExtensionRejected   the lease cannot be extended
    ├── LeaseFailed         the lease ended in ERROR or did not start
    ├── LeaseGone           the lease was deleted by somebody else or is over
    ├── BootFailed          a server ended in ERROR or did not boot in time; the message has the site's reason
    ├── NotReached          a machine cannot be reached by SSH
    │   ├── UnknownHost         its name is unknown; the message says what to add to ~/.ssh/config
    │   ├── LoginRejected       it rejects the key
    │   ├── BadHostKey          its host key is unknown or differs from the pinned one
    │   └── ConnectionDropped   the connection dropped while a command ran; its outcome is unknown
    ├── CommandFailed       a command on a machine failed
    ├── TimedOut            a command on a machine exceeded its time limit
    ├── ConfigureFailed     configuring a machine failed; the message names machine, task and output
    └── NotReleased         resources remain after a release

Every message is a single line. At the command line a SiteError gives exit code 3, every other error 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches

SIMILAR_COUNT = 3
"""How many similar names a message lists."""


class ProvisionError(Exception):
    """Base class of this package's errors."""


class UnknownSite(ProvisionError):
    """No site has that name; the message lists the known ones."""


class UnknownDevices(ProvisionError):
    """CUDA_VISIBLE_DEVICES names a GPU that the machine does not have; the message lists the installed ones."""


class NoSuchHost(ProvisionError):
    """No host has the requested type, name or hardware; the message lists the most similar names."""


class BadTime(ProvisionError):
    """A length, time, daily window or zone is malformed or not allowed; the message says what is allowed."""


class BadName(ProvisionError):
    """A site would reject the name, or no active lease or leaked resource has it."""


class BadKey(ProvisionError):
    """An SSH key file is missing or is not a key."""


class BadSshConfig(ProvisionError):
    """OpenSSH rejects the user's ssh configuration."""


class NoCredentials(ProvisionError):
    """No account is configured, or its credential cannot be used for the lease.

    Keystone may reject the credential. The credential may not be allowed to create leases, or end before the lease.
    """


class ForeignLease(ProvisionError):
    """A lease with that name exists that is not in the local journal. The command does not change the lease."""


class OtherAccount(ProvisionError):
    """The active lease of that name was made with another account. The command does not change the lease."""


class LeaseMismatch(ProvisionError):
    """The active lease with that name has other hosts than requested. The command does not change the lease."""


UNTOUCHED_LEASE_ERRORS = (ForeignLease, OtherAccount, LeaseMismatch)
"""Errors for an existing lease that the command must not use. The command does not release such a lease."""


class BadJournal(ProvisionError):
    """The journal is damaged or was written by another version."""


class PreflightCheckFailed(ProvisionError):
    """A preflight check found a problem; the message names the fix."""


class SiteError(ProvisionError):
    """A failure of the site, not of the user."""


class Unreachable(SiteError):
    """A service does not answer or has an internal error. The outcome of the request is unknown.

    retry_after_s: seconds that the service asks to wait, 0 if it does not state a time.
    """

    def __init__(self, message: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestRejected(SiteError):
    """A service rejects a request."""


class NotEnoughHosts(SiteError):
    """Too few matching hosts are free at that time."""


class NoAddress(SiteError):
    """No floating IP is free, and none can be allocated."""


class ExtensionRejected(SiteError):
    """The lease cannot be extended."""


class LeaseFailed(SiteError):
    """The lease ended in ERROR or did not start."""


class LeaseGone(SiteError):
    """The lease was deleted by somebody else or is over."""


class BootFailed(SiteError):
    """A server ended in ERROR or did not boot in time."""


class NotReached(SiteError):
    """A machine cannot be reached by SSH; often transient."""


class UnknownHost(NotReached):
    """The machine's name is unknown: neither the user's ssh configuration nor the network knows it."""


class LoginRejected(NotReached):
    """The machine rejects the key."""


class BadHostKey(NotReached):
    """The machine's host key is unknown or differs from the pinned one."""


class ConnectionDropped(NotReached):
    """The connection dropped while a command ran. The command's outcome is unknown."""


class CommandFailed(SiteError):
    """A command on a machine failed; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TimedOut(SiteError):
    """A command on a machine exceeded its time limit and was killed."""


class ConfigureFailed(SiteError):
    """Configuring a machine failed; the message names machine, task, output and fix."""


class NotReleased(SiteError):
    """Resources remain after a release."""


def most_similar_names(value: str, names: Iterable[str]) -> str:
    """Return the ``SIMILAR_COUNT`` names most similar to ``value``, comma-separated.

    ``value`` is compared with each name, and with the part of the name after its last slash.
    """
    spelled = {key.casefold(): name for name in sorted(names) for key in (name.rpartition("/")[2], name)}
    keys = get_close_matches(value.casefold(), spelled, n=2 * SIMILAR_COUNT, cutoff=0)
    return ", ".join(list(dict.fromkeys(spelled[key] for key in keys))[:SIMILAR_COUNT])
