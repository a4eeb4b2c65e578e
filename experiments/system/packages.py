"""Check optional packages, and name the extras of llm-testbed that install them."""

from importlib.util import find_spec

from experiments.errors import InputError

EXTRAS = {
    "blame": ("packaging", "uv"),
    "chameleon": ("ansible_runner", "blazarclient", "chi", "keystoneauth1", "openstack", "requests"),
    "container": ("docker",),
    "history": ("ruptures",),
    "mlflow": ("alembic", "mlflow", "sqlalchemy"),
    "notify": ("apprise",),
    "watch": ("textual", "textual_serve"),
    "train": (
        "accelerate",
        "bitsandbytes",
        "datasets",
        "deepspeed",
        "ipykernel",
        "lightning",
        "numpy",
        "papermill",
        "peft",
        "PIL",
        "torch",
        "transformers",
    ),
}


class MissingPackage(InputError):
    """An optional package is not installed; the message says how to install it."""


def require_packages(*modules: str) -> None:
    """Raise MissingPackage for the first of ``modules`` that is not installed. Does not import them."""
    for module in modules:
        if find_spec(module) is None:
            raise missing_package_error(module) or ModuleNotFoundError(name=module)


def missing_package_error(module: str | None) -> MissingPackage | None:
    """Return the error for a module that could not be imported; None if no extra installs the module."""
    package = (module or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if package in modules), None)
    if extra is None:
        return None
    return MissingPackage(f"package {package!r} is not installed; pip install 'llm-testbed[{extra}]'")
