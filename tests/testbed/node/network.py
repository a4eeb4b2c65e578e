"""A network of nodes on this machine: a bridge with NAT to the outside, removed together with the last node."""

import json
import subprocess
from pathlib import Path

BRIDGE = "testbed-nodes"
PREFIX = "10.78.0"
GATEWAY = f"{PREFIX}.1"
NETWORK = f"{PREFIX}.0/24"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
CLAMP = ("-p", "tcp", "--tcp-flags", "SYN,RST", "SYN", "-j", "TCPMSS", "--clamp-mss-to-pmtu")
RULES = (
    ("nat", "POSTROUTING", "-s", NETWORK, "!", "-o", BRIDGE, "-j", "MASQUERADE"),
    ("filter", "FORWARD", "-i", BRIDGE, "-j", "ACCEPT"),
    ("filter", "FORWARD", "-o", BRIDGE, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
    ("mangle", "FORWARD", "-i", BRIDGE, *CLAMP),
    ("mangle", "FORWARD", "-o", BRIDGE, *CLAMP),
)


def create_network() -> None:
    """Create the bridge and its rules if they are missing. The bridge's alias stores the former forwarding setting."""
    if not Path("/sys/class/net", BRIDGE).exists():
        _ip("link", "add", "name", BRIDGE, "type", "bridge")
        _ip("link", "set", "dev", BRIDGE, "alias", FORWARDING.read_text().strip())
    _ip("link", "set", "dev", BRIDGE, "mtu", str(mtu()), "up")
    _ip("address", "replace", f"{GATEWAY}/24", "dev", BRIDGE)
    FORWARDING.write_text("1")
    for rule in RULES:
        if not _has_rule(rule):
            _iptables("-I", rule, check=True)


def remove_network() -> None:
    """Remove the network, unless a node still uses it."""
    bridge = Path("/sys/class/net", BRIDGE)
    if not bridge.exists() or any((bridge / "brif").iterdir()):
        return
    for rule in RULES:
        while _has_rule(rule):
            _iptables("-D", rule, check=True)
    FORWARDING.write_text((bridge / "ifalias").read_text())
    _ip("link", "delete", BRIDGE)


def mtu() -> int:
    """Return the MTU of this machine's network, bytes."""
    routes = json.loads(_ip("-json", "route", "show", "default"))
    return int(Path("/sys/class/net", routes[0]["dev"], "mtu").read_text()) if routes else 1500


def _has_rule(rule: tuple[str, ...]) -> bool:
    return _iptables("-C", rule).returncode == 0


def _iptables(operation: str, rule: tuple[str, ...], check: bool = False) -> subprocess.CompletedProcess[bytes]:
    table, chain, *match = rule
    return subprocess.run(["iptables", "-w", "-t", table, operation, chain, *match], capture_output=True, check=check)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
