"""The program that nodes run to end their idle lease, as a module."""

import importlib.util
import sys
from types import ModuleType

from provision.configure.playbook import ANSIBLE

FILE = ANSIBLE / "roles/end_when_idle/files/end_when_idle.py"


def load() -> ModuleType:
    """Import the program from the files of its role."""
    described = importlib.util.spec_from_file_location("end_when_idle", FILE)
    assert described
    assert described.loader
    module = sys.modules["end_when_idle"] = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module
