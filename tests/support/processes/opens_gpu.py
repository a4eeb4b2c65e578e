"""A module that stands for a library that initializes CUDA when it is imported."""

import sys
from types import SimpleNamespace

sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))  # type: ignore[assignment]
