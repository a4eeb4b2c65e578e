"""Translate exceptions of the OpenStack clients into this package's errors, according to their cause."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
from blazarclient.exception import BlazarClientException
from keystoneauth1 import exceptions as keystone_errors
from openstack import exceptions as sdk_errors

from provision.errors import NoCredentials, NotEnoughHosts, ProvisionError, RequestRejected, SiteError, Unreachable

CREDENTIALS_FIX = "log in again, or check OS_USERNAME and OS_PASSWORD, or the application credential in clouds.yaml"
LOST_CREDENTIAL = "application credential"
"""Text in keystone's response 404 if the application credential of the login was deleted or has expired."""
FORBIDDEN_FIX = "ask the project's PI for the permission or the quota"
NOT_FOUND, TOO_MANY_REQUESTS = 404, 429
Conflict = sdk_errors.ConflictException
"""Raised if a service rejects a request because a resource of that name exists."""
PERMANENT_ERRORS = (
    keystone_errors.CatalogException,
    sdk_errors.DuplicateResource,
    sdk_errors.EndpointNotFound,
    sdk_errors.InvalidRequest,
    sdk_errors.NotFoundException,
    sdk_errors.NotSupported,
)
"""Exceptions of the clients that have no HTTP status and that a retry does not fix."""


@contextmanager
def translate_errors(service: str, ignore_missing_resource: bool = False) -> Iterator[None]:
    """Translate the clients' exceptions into this package's errors, each a single line without secrets.

    service: the service's name in the messages. ignore_missing_resource: raise nothing if the resource does not exist
    (HTTP status 404).
    """
    try:
        yield
    except SiteError:
        raise
    except (keystone_errors.Unauthorized, keystone_errors.MissingRequiredOptions) as problem:
        raise NoCredentials(f"credentials: keystone rejects them: {first_line(problem)}; {CREDENTIALS_FIX}") from None
    except keystone_errors.ConnectionError as problem:
        raise Unreachable(f"{service} does not answer: {type(problem).__name__}") from None
    except (BlazarClientException, keystone_errors.ClientException, sdk_errors.SDKException) as problem:
        if not (ignore_missing_resource and _http_status(problem) == NOT_FOUND):
            raise _translated_error(service, problem) from None
    except requests.HTTPError as problem:
        raise _translated_error(service, problem) from None
    except requests.RequestException as problem:
        raise Unreachable(f"{service} does not answer: {type(problem).__name__}") from None


def _translated_error(service: str, problem: Exception) -> ProvisionError:
    """Return this package's error for a client's exception, according to its HTTP status and message."""
    code, line = _http_status(problem), first_line(problem)
    if "Not enough" in line and "host" in line.lower():
        return NotEnoughHosts(f"{service}: {line}")
    if code == NOT_FOUND and LOST_CREDENTIAL in line.lower():
        return NoCredentials(f"credentials: keystone rejects them: {line}; {CREDENTIALS_FIX}")
    if code == TOO_MANY_REQUESTS:
        return Unreachable(f"{service} asks to wait (429): {line}", _retry_after_s(problem))
    if code is None and isinstance(problem, PERMANENT_ERRORS):
        return RequestRejected(f"{service}: {line}")
    if code is None or code >= 500:
        what = f"{service} has an error ({code or type(problem).__name__}): {line}"
        return Unreachable(what, _retry_after_s(problem))
    fix = f"; {FORBIDDEN_FIX}" if code == requests.codes.forbidden else ""
    return RequestRejected(f"{service} rejects the request ({code}): {line}{fix}")


def _retry_after_s(problem: Exception) -> float:
    """Return the seconds that the service asks to wait, from a number or a date in its response; 0 without one."""
    headers = getattr(getattr(problem, "response", None), "headers", None) or {}
    header = str(headers.get("Retry-After", ""))
    if header.isdecimal():
        return float(header)
    with suppress(ValueError):
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    return 0.0


def _http_status(problem: Exception) -> int | None:
    code = getattr(problem, "status_code", None) or getattr(problem, "http_status", None)
    answered = getattr(getattr(problem, "response", None), "status_code", None)
    return code or getattr(problem, "kwargs", {}).get("code") or answered


def first_line(problem: Exception) -> str:
    """Return the first line of an exception's message, without the URL that the clients put before the message."""
    text = str(problem).strip().partition("\n")[0]
    return re.sub(r"^.*Error for url: \S+,? ?|^ERROR: ", "", text)
