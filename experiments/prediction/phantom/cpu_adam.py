"""DeepSpeed's CPU Adam on the phantom device."""

from types import SimpleNamespace


def skip_cpu_adam() -> None:
    """Replace DeepSpeed's CPU Adam with an optimizer that allocates the same state but computes nothing."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    CPUAdamBuilder.load = lambda self: SimpleNamespace(
        create_adam=lambda *_: None, adam_update=lambda *_: None, destroy_adam=lambda *_: None
    )
