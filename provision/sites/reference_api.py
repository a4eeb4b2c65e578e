"""Chameleon's reference API, which describes the hardware of nodes and flavors. It needs no login.

https://chameleoncloud.readthedocs.io/en/latest/technical/discovery.html. A response lists at most 500 items;
``total`` is the number of all items.
"""

import json
import re
import time
from typing import Any

import requests
import urllib3
from chi import context

from provision.errors import Unreachable
from provision.models import GIB
from provision.sites.faults import translate_errors

SERVICE = "the reference API"
REQUEST_TIMEOUT_S = 60
"""Timeout of a request, seconds."""
MAX_RESPONSE_MIB = 64
"""Maximum size of a response. The description of 500 nodes takes about 2 MiB."""
MAX_ITEMS = 20_000
MAX_GPUS = 64
CHUNK_BYTES = 65536

MEMORY = re.compile(r"(\d+) ?G[iB]?B?\b")
"""The memory in the name of a GPU model, as in A100-PCIE-40GB."""
MIG_MEMORY = re.compile(r"\.(\d+)gb\b")
"""The memory in the name of a MIG profile, as in 1g.12gb."""
FLAVOR_MODEL = re.compile(r"g\d+\.(\w+)\.")
"""The GPU model in the name of a flavor, as in g1.h100.pci.1. The reference API has no other field with the model."""
INTERCONNECTS = {"nvlink": "NVLink", "sxm": "NVLink", "pcie": "PCIe", "pci": "PCIe"}


def reference_items(path: str) -> list[Any]:
    """Return all items of a list of the reference API.

    Raises Unreachable if the service fails, or its response is not a list of items, is too long, or does not end.
    """
    items: list[Any] = []
    while True:
        listed, total = _read_page(path, len(items))
        items += listed
        if not listed or len(items) >= total:
            return items
        if len(items) > MAX_ITEMS:
            raise Unreachable(f"{SERVICE} lists more than {MAX_ITEMS} items of {path}")


def _read_page(path: str, offset: int) -> tuple[list[Any], int]:
    """Return the items from the offset on, and the number of all items."""
    url, query = f"{context.RESOURCE_API_URL}/{path}.json", {"offset": offset} if offset else {}
    with translate_errors(SERVICE), requests.get(url, query, timeout=REQUEST_TIMEOUT_S, stream=True) as response:
        if not response.ok:
            raise requests.HTTPError(response.reason or "no reason given", response=response)
        body = _read_body(response)
    try:
        page = json.loads(body)
        items, total = page["items"], int(page.get("total", 0))
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        items, total = None, 0
    if not isinstance(items, list):
        kind = response.headers.get("Content-Type", "without a type")
        raise Unreachable(f"{SERVICE}: {path} is not a list of items, but {kind!r} that begins with {body[:60]!r}")
    return items, total


def _read_body(response: requests.Response) -> bytes:
    """Return a response's body. Raises Unreachable if it is too long, takes too long, or breaks off."""
    body, end = bytearray(), time.monotonic() + REQUEST_TIMEOUT_S
    try:
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > MAX_RESPONSE_MIB * 2**20:
                raise Unreachable(f"{SERVICE}: the response is longer than {MAX_RESPONSE_MIB} MiB")
            if time.monotonic() > end:
                raise Unreachable(f"{SERVICE}: the response does not end within {REQUEST_TIMEOUT_S} s")
    except urllib3.exceptions.HTTPError as problem:
        raise Unreachable(f"{SERVICE}: the response breaks off: {type(problem).__name__}") from None
    return bytes(body)


def text_field(item: dict[str, Any], name: str) -> str:
    """Return a field that is a printable text. Raises ValueError for other values, such as null for a missing field."""
    value = item.get(name)
    if not (isinstance(value, str) and value and value.isprintable()):
        raise ValueError(f"{name} is {value!r}, not a printable text")
    return value


def gpu_fields(item: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields of Host that describe GPUs, {} without GPUs. item: an item of the reference API.

    kind: the name of the node type or flavor, which may name GPU and interconnect. Raises ValueError for an impossible
    number of GPUs.
    """
    gpu = item.get("gpu") or {}
    gpu = gpu[0] if isinstance(gpu, list) else gpu
    if not gpu.get("gpu"):
        return {}
    named = FLAVOR_MODEL.match(kind)
    model = str(gpu.get("gpu_model") or (named[1].upper() if named else ""))
    count = int(gpu.get("gpu_count") or 1)
    if not 1 <= count <= MAX_GPUS:
        raise ValueError(f"gpu_count is {count}; allowed: 1 to {MAX_GPUS}")
    return {
        "gpu_model": model,
        "gpus": count,
        "gpu_memory_gib": _memory_gib(gpu, model),
        "interconnect": _interconnect(f"{model} {kind}"),
    }


def _memory_gib(gpu: dict[str, Any], model: str) -> float:
    """Return the reported memory, else the memory in the name of the MIG profile or GPU model, else 0, in GiB."""
    if reported := gpu.get("gpu_memory"):
        return float(reported / GIB)
    named = MIG_MEMORY.search(str(gpu.get("gpu_mig_profile") or "")) or MEMORY.search(model)
    return float(named[1]) if named else 0.0


def _interconnect(words: str) -> str:
    """Return the interconnect that the GPU model or the node type names, or ''."""
    return next((name for word, name in INTERCONNECTS.items() if word in words.lower()), "")
