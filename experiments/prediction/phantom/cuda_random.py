"""Replace the random generators of CUDA, which a build of PyTorch without CUDA does not have."""

from typing import Any

import torch

STATE_BYTES = 16
"""Size of the state of a CUDA generator: a seed and an offset (aten/src/ATen/cuda/CUDAGeneratorImpl.cpp)."""
MAX_GPUS = 16


class Generator(torch.Generator):
    """A generator for any device. For the phantom device, it draws numbers on the host, which nothing reads."""

    _requested: torch.device

    def __new__(cls, device: Any = "cpu") -> "Generator":
        """Return a generator that reports ``device`` as its device."""
        requested = torch.device(device)
        generator = super().__new__(cls, "cpu" if requested.type == "cuda" else requested)  # type: ignore[call-arg]
        generator._requested = requested
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that the generator was made for."""
        return self._requested

    def get_state(self) -> torch.Tensor:
        """Return the state. For the phantom device, it has the size of a CUDA generator's, and does not change."""
        return _new_state() if self._requested.type == "cuda" else super().get_state()

    def set_state(self, new_state: torch.Tensor) -> torch.Generator:
        """Set the state. For the phantom device, nothing happens."""
        return self if self._requested.type == "cuda" else super().set_state(new_state)


def replace_random_functions() -> None:
    """Make torch.cuda's functions for random numbers work on the phantom device, and torch.Generator on "cuda"."""
    state = _new_state()
    functions: dict[str, Any] = {
        "manual_seed": make_no_operation(),
        "manual_seed_all": make_no_operation(),
        "seed": make_no_operation(),
        "seed_all": make_no_operation(),
        "initial_seed": lambda: 0,
        "get_rng_state": lambda device=None: state,
        "get_rng_state_all": lambda: [state],
        "set_rng_state": make_no_operation(),
        "set_rng_state_all": make_no_operation(),
    }
    for owner in (torch.cuda, torch.cuda.random):
        for name, replacement in functions.items():
            setattr(owner, name, replacement)
    torch.Generator = Generator  # type: ignore[misc]
    torch.cuda.default_generators = (Generator("cuda"),) * MAX_GPUS  # type: ignore[assignment]


def _new_state() -> torch.Tensor:
    return torch.zeros(STATE_BYTES, dtype=torch.uint8)


def make_no_operation() -> Any:
    """Return a new function that does nothing: not a shared one, because torch compares functions by identity."""
    return lambda *_, **__: None
