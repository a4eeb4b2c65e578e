"""Why a server did not boot, read from the site's own words: only the host's faults cost a node."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What is at fault, and how to mend it. retry: whether another attempt may go better."""

    what: str
    fix: str
    retry: bool


HOST = Cause("host", "release the lease and choose other nodes, and report these to the site's help desk", True)
NETWORK = Cause("network", "retry later, or ask the site's help desk about its network", True)
SERVICE = Cause("service", "retry later, and check chameleoncloud.org for outages", True)
REMOVED = Cause("somebody else", "agree with the others of your project, then lease again", True)
IMAGE = Cause("image", "ask the site's help desk about the image", False)
KEY = Cause("key", "release the lease and lease again, so that the SSH key is uploaded", False)
QUOTA = Cause("quota", "delete servers of the project, or ask the site's help desk for more", False)

SIGNS = (
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
"""The first sign that is in the fault tells its cause; a fault without a sign is the host's."""


def cause_of(fault: str) -> Cause:
    """Return what is at fault."""
    return next((cause for sign, cause in SIGNS if sign.search(fault.lower())), HOST)
