"""Run a function in a fork of this process, so that what it changes in PyTorch ends with it."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
FORK = multiprocessing.get_context("fork")


def run_in_fork(function: Callable[..., T], *arguments: Any) -> T:
    """Return the function's result. Raises EOFError if the fork ends without one."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    result: T = receiver.recv()
    process.join()
    return result


def _send_result(out: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    out.send(function(*arguments))
