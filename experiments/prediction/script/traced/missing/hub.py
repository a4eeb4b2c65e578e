"""The Hugging Face hub: a script uploads nothing, and the error of a missing data set names it."""

import errno
import re
from concurrent.futures import Future
from functools import wraps
from typing import Any

from experiments.prediction.script.traced.missing import substitutes

CHANGES = re.compile(r"(add|copy|create|delete|duplicate|merge|move|preupload|super_squash|update|upload)_")
"""Beginnings of the names of the functions that change the hub."""
UPLOAD_NOTE = "uploads to the Hugging Face hub were skipped"


def skip_uploads() -> None:
    """Replace huggingface_hub's functions that change the hub by functions that only return what a script uses."""
    from huggingface_hub import hf_api

    for name in filter(CHANGES.match, dir(hf_api.HfApi)):
        setattr(hf_api.HfApi, name, _skip_creation if name == "create_repo" else _skip_change)
        setattr(hf_api, name, getattr(hf_api.api, name))


def skip_uploads_of_models() -> None:
    """Let the method push_to_hub of transformers' models, tokenizers and configurations do nothing."""
    from transformers.utils.hub import PushToHubMixin

    PushToHubMixin.push_to_hub = _skip_change  # type: ignore[method-assign]


def prepare_datasets() -> None:
    """Let the method push_to_hub of data sets do nothing, and let the error of a missing data set name the data set."""
    import datasets.load
    from datasets import arrow_dataset, dataset_dict, iterable_dataset

    for owner in (
        arrow_dataset.Dataset,
        dataset_dict.DatasetDict,
        dataset_dict.IterableDatasetDict,
        iterable_dataset.IterableDataset,
    ):
        owner.push_to_hub = _skip_change
    load = datasets.load.load_dataset

    @wraps(load)
    def load_dataset(path: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return load(path, *arguments, **options)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                raise
            substitutes.explain(
                error,
                f"the data set '{path}', or a file of it; download it once with network, or let the script read files "
                "of its own (data sets are not made up, because their columns and lengths are unknown)",
            )
            raise

    datasets.load.load_dataset = load_dataset


def _skip_creation(_: Any, repo_id: str, **options: Any) -> Any:
    from huggingface_hub.hf_api import RepoUrl

    substitutes.add_note(UPLOAD_NOTE)
    kind = {"dataset": "datasets/", "space": "spaces/"}.get(options.get("repo_type") or "", "")
    return RepoUrl(f"https://huggingface.co/{kind}{repo_id if '/' in repo_id else f'user/{repo_id}'}")


def _skip_change(*_: Any, run_as_future: bool = False, **__: Any) -> Any:
    from huggingface_hub.hf_api import CommitInfo

    substitutes.add_note(UPLOAD_NOTE)
    commit = CommitInfo(
        commit_url=f"https://huggingface.co/user/skipped/commit/{'0' * 40}",
        commit_message="",
        commit_description="",
        oid="0" * 40,
    )
    if not run_as_future:
        return commit
    future: Future[Any] = Future()
    future.set_result(commit)
    return future
