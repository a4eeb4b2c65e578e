"""Commands while the reference API fails or describes nodes oddly; tests/provision/sites has every kind of answer."""

import json

import pytest

from tests.testbed.chameleon.conftest import left_at
from tests.testbed.openstack import hardware

NODES = "refapi/sites/uc/clusters/chameleon/nodes"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 503, "body": "busy"}, "the reference API has an error (503)"),
        ({"body": "<html>Sign in", "type": "text/html"}, "the reference API: sites is not a list of items"),
        ({"status": 404, "body": "{}"}, "the reference API rejects the request (404)"),
    ],
)
def test_a_truncated_response_stops_a_lease_before_anything_is_reserved(
    answer, message, testbed, site, local_openstack, key
):
    local_openstack.replace_reference_api_responses(**answer)
    code, _, err = testbed("lease", "--node-type", "gpu_a100_pcie", "--start", "now", "--key", str(key.file), "--yes")
    assert code
    assert message in err
    assert "Traceback" not in err
    local_openstack.repair()
    assert left_at(site) == []


def test_a_node_that_cannot_be_read_is_not_offered(site, local_openstack, caplog):
    first, *others = hardware.MACHINES
    file = local_openstack.place.folder / NODES / f"{first.uid}.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "node_name": None}))
    try:
        assert {host.name for host in site.hosts()} == {machine.name for machine in others}
    finally:
        file.write_text(before)
    assert "node_name is None" in caplog.text
