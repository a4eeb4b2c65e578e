"""Sites: places where machines come from. Found by name, and loaded only when asked for."""

from importlib import import_module
from typing import Protocol

from provision.errors import UnknownSite
from provision.model import Node

SITES = {"local": "provision.sites.local"}


class Site(Protocol):
    """What every module under provision/sites offers."""

    def node(self) -> Node:
        """The machine that rows run on; ProvisionError when there is none."""
        ...


def site_named(name: str) -> Site:
    """The site of that name; UnknownSite lists the names there are."""
    if name not in SITES:
        raise UnknownSite(f"unknown site {name!r}; allowed: {', '.join(SITES)}")
    return import_module(SITES[name])
