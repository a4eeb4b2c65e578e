"""A fake volume service without data: the part of Cinder's API that nova needs to boot from a volume."""

import json
import re
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSIONS = {
    "versions": [{"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0", "links": []}],
}
Answer = tuple[int, dict[str, Any]]


class Volumes:
    """A WSGI application with volumes and attachments by id. If the file ``stuck`` exists, one deletion fails."""

    def __init__(self, stuck: Path) -> None:
        self._stuck = stuck
        self._volumes: dict[str, dict[str, Any]] = {}
        self._attachments: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        body = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"{}")
        path = re.sub(r"^/v3/[^/]+", "", str(environ["PATH_INFO"])).strip("/")
        with self._lock:
            status, answer = self._answer(str(environ["REQUEST_METHOD"]), path.split("/"), body)
        start_response(f"{status} OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    def _answer(self, method: str, path: list[str], body: dict[str, dict[str, Any]]) -> Answer:
        match method, path:
            case "GET", [""] | ["v3"]:
                return 300, VERSIONS
            case "POST", ["volumes"]:
                return 202, {"volume": self._create(body["volume"])}
            case "GET", ["volumes"] | ["volumes", "detail"]:
                return 200, {"volumes": list(self._volumes.values())}
            case "GET", ["volumes", id]:
                return (200, {"volume": self._volumes[id]}) if id in self._volumes else (404, {})
            case "DELETE", ["volumes", _] if self._stuck.exists():
                self._stuck.unlink()
                return 500, {}
            case "DELETE", ["volumes", id]:
                return (202, {}) if self._volumes.pop(id, None) else (404, {})
            case "POST", ["attachments"]:
                return 200, {"attachment": self._attach(body["attachment"])}
            case (("GET" | "PUT"), ["attachments", id]):
                return 200, {"attachment": self._attachments[id]}
            case "DELETE", ["attachments", id]:
                self._detach(id)
                return 200, {"attachments": []}
            case "POST", [_, _, "action"]:
                return 202, {}
        return 404, {}

    def _create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        volume = {
            "id": str(uuid.uuid4()),
            "status": "available",
            "size": wanted["size"],
            "name": wanted.get("name"),
            "description": wanted.get("description"),
            "availability_zone": "nova",
            "created_at": datetime.now(UTC).isoformat(),
            "attachments": [],
            "volume_type": "fake",
            "snapshot_id": None,
            "bootable": "true",
            "multiattach": False,
            "metadata": {},
            "shared_targets": False,
            "service_uuid": None,
        }
        self._volumes[volume["id"]] = volume
        return volume

    def _attach(self, wanted: dict[str, Any]) -> dict[str, Any]:
        attachment = {
            "id": str(uuid.uuid4()),
            "status": "attached",
            "volume_id": wanted["volume_uuid"],
            "instance": wanted.get("instance_uuid"),
            "attach_mode": "rw",
            "connection_info": {"driver_volume_type": "fake", "data": {}},
        }
        self._attachments[attachment["id"]] = attachment
        self._volumes[attachment["volume_id"]]["status"] = "in-use"
        return attachment

    def _detach(self, id: str) -> None:
        attachment = self._attachments.pop(id, None)
        if attachment and attachment["volume_id"] in self._volumes:
            self._volumes[attachment["volume_id"]]["status"] = "available"
