"""Keep experiment trackers from uploading: their own switches, and local storage for those without a switch.

TensorBoard and Trackio without a Space write only local files. Sources of the variables:

- Weights & Biases: docs.wandb.ai, "What is the difference between wandb.init modes?"
- MLflow: mlflow.org/docs, "Tracking server" (MLFLOW_TRACKING_URI). Version 3.17 rejects file stores without
  MLFLOW_ALLOW_FILE_STORE.
- Comet: comet_ml.start reads COMET_START_ONLINE. COMET_AUTO_LOG_DISABLE is the default of the parameter `disabled` of
  Experiment and ExistingExperiment (comet_ml 3.58, _online.py): no network communication. transformers' CometCallback
  logs nothing for a COMET_MODE that it does not know, and its documentation names `disabled`.
- Neptune: docs.neptune.ai, "Environment variables". Neptune and Neptune Scale both allow `offline`.
- ClearML: clear.ml/docs, "Offline mode".
- SwanLab: docs.swanlab.cn, "swanlab disabled".
- Trackio: docs/source/environment_variables.md of gradio-app/trackio, and trackio.init, API reference of version 0.30.
"""

import functools
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLES = {
    "WANDB_MODE": "disabled",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "COMET_MODE": "disabled",
    "COMET_START_ONLINE": "0",
    "COMET_AUTO_LOG_DISABLE": "1",
    "NEPTUNE_MODE": "offline",
    "CLEARML_OFFLINE_MODE": "1",
    "SWANLAB_MODE": "disabled",
}
REMOVED_VARIABLES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID")
"""Variables with which Trackio uploads. An empty value would be the name of a Space."""
UPLOAD_OPTIONS = ("space_id", "space_storage", "dataset_id", "bucket_id", "server_url")
"""Parameters of trackio.init that name a place to upload to."""


def turn_off_trackers(folder: Path) -> None:
    """Set the variables that keep trackers from uploading. folder: MLflow writes to a new folder in it."""
    os.environ.update(VARIABLES, MLFLOW_TRACKING_URI=(folder / "mlflow").absolute().as_uri())
    for name in REMOVED_VARIABLES:
        os.environ.pop(name, None)


def keep_trackio_local() -> None:
    """Import Trackio; let it write only local files, even if the script names a Space or a server."""
    import trackio

    trackio.init = _without_uploads(trackio.init)
    _skip(trackio, "sync", "freeze")


def _without_uploads(init: Any) -> Any:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def init_locally(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        for name in UPLOAD_OPTIONS:
            bound.arguments.pop(name, None)
        return init(*bound.args, **bound.kwargs)

    return init_locally


def _skip(module: ModuleType, *names: str) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, lambda *_, **__: None)
