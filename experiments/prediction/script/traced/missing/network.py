"""Without network, requests to the Hugging Face hub fail within seconds, not after a minute of repetitions."""

import os
from typing import Any

CONNECT_TIMEOUT_S = 6.0
"""Seconds in which a connection must be open. In this time, Linux sends its first packet three times (tcp(7))."""
MAX_FAILED_CONNECTIONS = 2
"""After this number of connections that fail immediately, there is no network, unless the hub has answered before."""
TIMEOUT_VARIABLES = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
"""Variables with which a user sets the timeouts of huggingface_hub, also that of connections."""


class HubConnection:
    """The connection of this process to the hub.

    unreachable_reason: why the hub cannot be reached; "" if it can be reached, or if this is not yet known. A slow
    answer is no failure: huggingface_hub waits and repeats requests as usual.
    """

    def __init__(self) -> None:
        self.unreachable_reason = ""
        self._has_answered, self._failed = False, 0

    def client(self) -> Any:
        """Return huggingface_hub's HTTP client, which turns on its offline mode as soon as there is no network."""
        import httpx
        from huggingface_hub.utils._http import default_client_factory

        client = default_client_factory()
        send = client.send

        def send_or_go_offline(request: httpx.Request, **options: Any) -> httpx.Response:
            _limit_connect_timeout(request)
            try:
                response = send(request, **options)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._count_failure(error, immediately=isinstance(error, httpx.ConnectError))
                raise
            self._has_answered = True
            return response

        client.send = send_or_go_offline  # type: ignore[method-assign]
        return client

    def _count_failure(self, error: Exception, immediately: bool) -> None:
        """Turn on the offline mode of huggingface_hub if the failed connection shows that there is no network."""
        from huggingface_hub import constants
        from huggingface_hub.errors import OfflineModeIsEnabled

        self._failed += 1
        if self._has_answered or (immediately and self._failed < MAX_FAILED_CONNECTIONS):
            return
        self.unreachable_reason = str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s"
        constants.HF_HUB_OFFLINE = True
        raise OfflineModeIsEnabled(f"the Hugging Face hub cannot be reached: {self.unreachable_reason}") from error

    @property
    def state(self) -> str:
        """Return why a file is not loaded from the hub, as far as it is known."""
        if self.unreachable_reason:
            return f"the Hugging Face hub cannot be reached: {self.unreachable_reason}"
        return "the hub does not provide it or cannot be reached"


connection = HubConnection()


def watch_connection() -> None:
    """Let huggingface_hub use the client of ``connection``. Older versions, whose client is fixed, stay unchanged."""
    import huggingface_hub.file_download

    if set_factory := getattr(huggingface_hub, "set_client_factory", None):
        set_factory(connection.client)


def _limit_connect_timeout(request: Any) -> None:
    timeout = request.extensions.get("timeout", {})
    longest = timeout.get("connect") or CONNECT_TIMEOUT_S
    if not any(name in os.environ for name in TIMEOUT_VARIABLES):
        request.extensions["timeout"] = {**timeout, "connect": min(longest, CONNECT_TIMEOUT_S)}
