"""Exceptions of the OpenStack clients are converted to errors by their cause."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests
from blazarclient.exception import BlazarClientException
from keystoneauth1 import exceptions as keystone_errors
from openstack import exceptions as sdk_errors

from provision.errors import NoCredentials, NotEnoughHosts, RequestRejected, Unreachable
from provision.leasing.reconciler import ATTEMPTS, LONGEST_REQUESTED_PAUSE_S
from provision.sites.faults import translate_errors
from tests.support.leasing.fake_site import NOW

GONE = "Could not find Application Credential: 0a1b."


def http_answer(status, **headers):
    made = requests.Response()
    made.status_code = status
    made.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return made


@pytest.mark.parametrize(
    ("problem", "kind", "message"),
    [
        (sdk_errors.DuplicateResource("More than one Image exists"), RequestRejected, "nova: More than one Image"),
        (sdk_errors.NotFoundException("No Network found for sharednet1"), RequestRejected, "No Network found"),
        (keystone_errors.EndpointNotFound("no endpoint"), RequestRejected, "nova: no endpoint"),
        (sdk_errors.SDKException("strange"), Unreachable, r"has an error \(SDKException\)"),
        (BlazarClientException("ERROR: boom", code=500), Unreachable, r"has an error \(500\): boom"),
        (BlazarClientException(f"ERROR: {GONE}", code=404), NoCredentials, "log in again"),
        (keystone_errors.NotFound(GONE), NoCredentials, "log in again"),
        (keystone_errors.Unauthorized("expired"), NoCredentials, "log in again"),
        (BlazarClientException("ERROR: slow down", code=429), Unreachable, r"asks to wait \(429\)"),
        (BlazarClientException("Not enough hosts available", code=400), NotEnoughHosts, "Not enough"),
        (sdk_errors.ConflictException("in use", http_status=409), RequestRejected, r"rejects the request \(409\)"),
        (keystone_errors.ConnectFailure("no"), Unreachable, "does not answer"),
    ],
)
def test_an_exception_of_a_client_library_is_translated_according_to_its_cause(problem, kind, message):
    with pytest.raises(kind, match=message), translate_errors("nova"):
        raise problem


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("90", 90, 90),
        (timedelta(hours=1), 3000, 3600),
        (timedelta(hours=-1), 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_time_that_a_service_asks_to_wait_is_read_from_its_response(code, asked, least, most):
    if isinstance(asked, timedelta):
        asked = format_datetime(datetime.now(UTC) + asked, usegmt=True)
    response = http_answer(code, Retry_After=asked)
    with pytest.raises(Unreachable) as busy, translate_errors("nova"):
        raise sdk_errors.HttpException("busy", response=response, http_status=code)
    assert least <= busy.value.retry_after_s <= most


@pytest.mark.parametrize(("asked", "least", "most"), [(0, 1, 2), (90, 90, 90), (1e9, *2 * [LONGEST_REQUESTED_PAUSE_S])])
def test_the_program_waits_as_long_as_a_service_asks(reconciler, asked, least, most):
    answers = [Unreachable("busy", asked)]

    def request():
        if answers:
            raise answers.pop()
        return "done"

    assert reconciler.query(request) == "done"
    assert least <= (reconciler.clock.now() - NOW).total_seconds() <= most


def test_a_service_that_asks_to_wait_after_every_attempt_is_reported(reconciler):
    asked = []

    def request():
        asked.append(1)
        raise Unreachable("busy", 60)

    with pytest.raises(Unreachable):
        reconciler.query(request)
    assert len(asked) == ATTEMPTS
