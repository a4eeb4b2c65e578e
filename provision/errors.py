"""What can go wrong with machines.

ProvisionError
├── UnknownSite         no site has that name
└── UnknownDevices      CUDA_VISIBLE_DEVICES names a GPU that the machine does not have

Every message is one line for a person.
"""


class ProvisionError(Exception):
    """Base of everything that this package raises."""


class UnknownSite(ProvisionError):
    """No site has that name; the message lists those there are."""


class UnknownDevices(ProvisionError):
    """CUDA_VISIBLE_DEVICES names a GPU that the machine does not have; the message lists those it has."""
