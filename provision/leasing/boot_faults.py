"""The cause of a failed boot, from the site's error message. A host is excluded only if it caused the failure."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A cause of a failed boot. at_fault: what or who caused it. is_retryable: whether another attempt may succeed."""

    at_fault: str
    fix: str
    is_retryable: bool


HOST = Cause("host", "release the lease, choose other nodes, and report the failed ones to the site's help desk", True)
NETWORK = Cause("network", "retry later, or ask the site's help desk about its network", True)
SERVICE = Cause("service", "retry later, and check chameleoncloud.org for outages", True)
REMOVED = Cause("somebody else", "ask the other users of your project, then lease again", True)
IMAGE = Cause("image", "ask the site's help desk about the image", False)
KEY = Cause("key", "release the lease and lease again, so that the SSH key is uploaded", False)
QUOTA = Cause("quota", "delete servers of the project, or ask the site's help desk for a larger quota", False)

CAUSES_BY_PATTERN = (
    (re.compile(r"deleted by somebody else"), REMOVED),
    (re.compile(r"quota"), QUOTA),
    (re.compile(r"key ?pair"), KEY),
    (re.compile(r"\bimage\b.*(unacceptable|not active|not found|could not be found|corrupt|checksum|no data)"), IMAGE),
    (re.compile(r"allocate the network|fixed ips?\b|ip addresses|\bvif\b|\bneutron\b|\bport\b.*binding"), NETWORK),
    (
        re.compile(r"messaging ?timeout|waiting for a reply|service unavailable|\b(rpc|placement|glance)\b"),
        SERVICE,
    ),
)
"""The first pattern that matches the fault message gives the cause; if none matches, the host is the cause."""


def cause_of(fault: str) -> Cause:
    """Return the cause that a site's error message indicates."""
    return next((cause for pattern, cause in CAUSES_BY_PATTERN if pattern.search(fault.lower())), HOST)
