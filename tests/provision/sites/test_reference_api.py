"""How the reference API's answers are read: usual, incomplete and broken ones. The service and Blazar are fakes."""

import json
import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import requests
from chi import context

from provision.errors import RequestRejected, Unreachable
from provision.sites import reference_api
from provision.sites.bare_metal import BareMetal
from provision.sites.kvm import Kvm
from provision.sites.reference_api import gpu_fields, reference_items
from tests.testbed.openstack import hardware
from tests.testbed.openstack.reference_api import ReferenceApi

NODES = "sites/uc/clusters/chameleon/nodes"
FLAVORS = "sites/kvm/flavors"


class SilentHandler(WSGIRequestHandler):
    def log_message(self, *args):
        pass


class Service:
    """The fake service, its files, and its URL."""

    def __init__(self, folder, port):
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"

    def write(self, path, data):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data))

    def change(self, path, **fields):
        """Replace fields of a file; ... removes one."""
        data = json.loads((self.folder / path).read_text()) | fields
        self.write(path, {name: value for name, value in data.items() if value is not ...})

    def answer(self, body, **more):
        self.write("answer.json", {"body": body, **more})


@pytest.fixture
def service(tmp_path, monkeypatch):
    server = make_server("127.0.0.1", 0, ReferenceApi(tmp_path), handler_class=SilentHandler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    made = Service(tmp_path, server.server_port)
    for path, data in hardware.reference_data("127.0.0.1").items():
        made.write(path, data)
    monkeypatch.setattr(context, "RESOURCE_API_URL", made.url)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def raw_service(monkeypatch):
    """Serve one connection by a function of the socket."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(action):
        def accept():
            with closing(listener.accept()[0]) as client:
                client.recv(65536)
                action(client)

        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setattr(context, "RESOURCE_API_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")

    yield serve
    listener.close()


def site_of(kind, name, hosts=(), flavors=()):
    site = kind.__new__(kind)
    site.name, site._logged_faults, site.user_id = name, set(), lambda: "me"
    site.blazar = SimpleNamespace(host=SimpleNamespace(list=lambda: list(hosts)))
    listed = [SimpleNamespace(name=flavor, id=flavor) for flavor in flavors]
    site.sdk = SimpleNamespace(compute=SimpleNamespace(flavors=lambda: listed))
    return site


def bare_metal(**more):
    uids = enumerate(machine.uid for machine in hardware.MACHINES)
    hosts = [
        {"id": str(number), "hypervisor_hostname": uid, "su_factor": "4", **more.get(uid, {})} for number, uid in uids
    ]
    return site_of(BareMetal, "CHI@UC", hosts)


def kvm(*flavors):
    return site_of(Kvm, "KVM@TACC", [{"id": 7}], flavors)


def test_every_reservable_node_is_a_host_with_its_hardware(service):
    hosts = {host.name: host for host in bare_metal().hosts()}
    assert list(hosts) == [machine.name for machine in hardware.MACHINES]
    a100 = hosts["P3-GPU-001"]
    assert (a100.gpus, a100.gpu_memory_gib, a100.interconnect, a100.su_per_hour) == (4, 80, "PCIe", 4)
    assert hosts["P2-GPU-001"].interconnect == "NVLink"
    assert hosts["gigaio-compute-06"].gpus == 0


def test_nodes_in_maintenance_or_without_a_description_are_not_hosts(service):
    first, second = (machine.uid for machine in hardware.MACHINES[:2])
    (service.folder / NODES / f"{second}.json").unlink()
    names = [host.name for host in bare_metal(**{first: {"reservable": False}}).hosts()]
    assert names == [machine.name for machine in hardware.MACHINES[2:]]


def test_the_name_of_a_flavor_states_its_gpu_model_and_only_a_slice_states_its_memory(service):
    slice_of = {"gpu": True, "gpu_count": 1, "gpu_allocation": "mig_slice", "gpu_mig_profile": "1g.12gb"}
    service.write(f"{FLAVORS}/g1.h100.vgpu.json", {"uid": "g1.h100.vgpu.1g.12gb", "gpu": slice_of})
    listed = [*hardware.FLAVORS, "g1.h100.vgpu.1g.12gb", "m1.large"]
    hosts = {host.node_type: host for host in kvm(*listed).hosts()}
    found = [(name, host.gpu_model, host.gpus, host.gpu_memory_gib, host.su_per_hour) for name, host in hosts.items()]
    assert sorted(found) == [
        ("g1.h100.pci.1", "H100", 1, 0, 0.5),
        ("g1.h100.pci.4", "H100", 4, 0, 2),
        ("g1.h100.vgpu.1g.12gb", "H100", 1, 12, None),
    ]
    assert [host.node_type for host in kvm("g1.h100.pci.4").hosts()] == ["g1.h100.pci.4"]


@pytest.mark.parametrize(
    ("model", "kind", "memory", "interconnect"),
    [
        ("GA100 [A100 PCIe 80GB]", "gpu_a100_pcie", 80, "PCIe"),
        ("GA100 [A100 SXM4 80GB]", "gpu_a100_nvlink", 80, "NVLink"),
        ("GH200 96GB HBM3", "gpu_gh200_96gb", 96, ""),
        ("RTX 6000", "gpu_rtx_6000", 0, ""),
        ("NVIDIA Corporation", "gpu_h100", 0, ""),
    ],
)
def test_memory_and_interconnect_are_read_from_the_name_of_the_model_or_node_type(model, kind, memory, interconnect):
    fields = gpu_fields({"gpu": {"gpu": True, "gpu_count": 1, "gpu_model": model}}, kind)
    assert (fields["gpu_model"], fields["gpu_memory_gib"], fields["interconnect"]) == (model, memory, interconnect)


def test_lists_that_need_several_responses_are_read_completely(service):
    for number in range(1001):
        service.write(f"{NODES}/n{number:04}.json", {"uid": f"n{number:04}"})
    items = reference_items(NODES)
    assert len({item["uid"] for item in items}) == len(items) == 1001 + len(hardware.MACHINES)


def test_reading_a_list_stops_at_a_maximum_number_of_items(service, monkeypatch):
    monkeypatch.setattr(reference_api, "MAX_ITEMS", 4)
    service.answer(json.dumps({"total": 10**9, "items": [{}]}))
    with pytest.raises(Unreachable, match="lists more than 4 items of sites"):
        reference_items("sites")


@pytest.mark.parametrize(
    "odd",
    [
        {"node_name": ...},
        {"node_name": "\x1b[31mP3"},
        {"node_type": None},
        {"gpu": {"gpu": True, "gpu_count": "many"}},
        {"gpu": {"gpu": True, "gpu_count": 10**9}},
        {"gpu": {"gpu": True, "gpu_count": float("inf")}},
        {"gpu": {"gpu": True, "gpu_memory": "80 GB"}},
        {"gpu": "A100"},
        {"gpu": [[]]},
        {"uid": ["a"]},
    ],
    ids=str,
)
def test_an_invalid_node_does_not_hide_other_nodes_and_is_reported_once(odd, service, caplog):
    first, *others = hardware.MACHINES
    service.change(f"{NODES}/{first.uid}.json", **odd)
    site = bare_metal()
    for _ in range(2):
        assert [host.name for host in site.hosts()] == [machine.name for machine in others]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the reference API: ")
    assert line.endswith("skipped, because it is the site's")
    assert "\x1b" not in line


def test_a_node_with_an_unknown_gpu_or_without_a_gpu_is_a_host(service):
    first, second, *_ = hardware.MACHINES
    service.change(f"{NODES}/{first.uid}.json", gpu={"gpu": True})
    service.change(f"{NODES}/{second.uid}.json", gpu=...)
    hosts = bare_metal().hosts()[:2]
    assert [(host.gpus, host.gpu_model, host.gpu_memory_gib) for host in hosts] == [(1, "", 0), (0, "", 0)]


def test_an_invalid_flavor_does_not_hide_other_flavors(service):
    service.write(f"{FLAVORS}/odd.json", {"uid": None, "gpu": 5})
    service.write(f"{FLAVORS}/number.json", {"uid": "number", "gpu": {"gpu": True, "gpu_count": -1}})
    assert len(kvm(*hardware.FLAVORS, "number").hosts()) == len(hardware.FLAVORS)


@pytest.mark.parametrize("fields", [{"name": "DEV@UC"}, {"name": ...}, {"uid": None}], ids=str)
def test_a_site_that_the_reference_api_does_not_list_is_named(fields, service):
    service.change("sites/uc/uc.json", **fields)
    with pytest.raises(RequestRejected, match="the reference API does not list site CHI@UC"):
        bare_metal().hosts()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ({"status": 500, "body": "boom"}, Unreachable, r"the reference API has an error \(500\)"),
        ({"status": 503, "body": "", "headers": {"Retry-After": "30"}}, Unreachable, r"has an error \(503\)"),
        ({"status": 429, "body": ""}, Unreachable, r"asks to wait \(429\)"),
        ({"status": 404, "body": '{"detail": "Not Found"}'}, RequestRejected, r"rejects the request \(404\)"),
        (
            {"body": "<html>Sign in", "type": "text/html"},
            Unreachable,
            "not a list of items, but 'text/html' that begins with",
        ),
        ({"body": ""}, Unreachable, "not a list of items"),
        ({"body": '{"total": 1, "items": ['}, Unreachable, "not a list of items"),
        ({"body": "[]"}, Unreachable, "not a list of items"),
        ({"body": "{}"}, Unreachable, "not a list of items"),
        ({"body": '{"items": {}}'}, Unreachable, "not a list of items"),
        ({"body": '{"items": [], "total": "all"}'}, Unreachable, "not a list of items"),
        ({"body": "[", "times": 200_000}, Unreachable, "not a list of items"),
        ({"body": " " * 2**20, "times": 3}, Unreachable, "longer than 2 MiB"),
        ({"body": "{}", "headers": {"Content-Encoding": "gzip"}}, Unreachable, "breaks off: DecodeError"),
    ],
)
def test_an_invalid_response_is_reported_in_one_line(answer, kind, message, service, monkeypatch):
    monkeypatch.setattr(reference_api, "MAX_RESPONSE_MIB", 2)
    service.answer(**answer)
    with pytest.raises(kind, match=message) as error:
        bare_metal().hosts()
    assert "\n" not in str(error.value)
    assert getattr(error.value, "retry_after_s", 0) == (30 if answer.get("headers", {}).get("Retry-After") else 0)


def test_a_silent_or_slow_response_is_abandoned_at_the_time_limit(raw_service, monkeypatch):
    monkeypatch.setattr(reference_api, "REQUEST_TIMEOUT_S", 0.3)
    ended = threading.Event()

    def send_slowly(client):
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.05):
            client.sendall(b" ")

    for action, says in (
        (lambda client: ended.wait(10), "does not answer: ReadTimeout"),
        (send_slowly, "does not end within"),
    ):
        raw_service(action)
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=says):
            reference_items("sites")
        assert time.monotonic() - begun < 5
    ended.set()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"garbage\r\n\r\n"])
def test_a_service_whose_connection_breaks_off_counts_as_unreachable(sent, raw_service):
    raw_service(lambda client: client.sendall(sent))
    with pytest.raises(Unreachable, match=r"does not answer|breaks off"):
        reference_items("sites")


def test_the_fake_reference_api_answers_in_the_format_of_the_real_one(service):
    def get(path):
        answer = requests.get(f"{service.url}/{path}", timeout=10)
        return answer.status_code, answer.json()

    uid = hardware.MACHINES[0].uid
    code, listed = get(f"{NODES}.json?limit=2&offset=1")
    assert (code, listed["total"], listed["offset"], len(listed["items"])) == (200, len(hardware.MACHINES), 1, 2)
    assert listed["links"] == [
        {"rel": "self", "href": f"/{NODES}"},
        {"rel": "parent", "href": "/sites/uc/clusters/chameleon"},
    ]
    code, node = get(f"{NODES}/{uid}")
    assert (code, node["uid"], node["version"]) == (200, uid, listed["version"])
    assert {link["rel"] for link in node["links"]} == {"self", "parent", "versions", "version"}
    assert get(f"{NODES}/none") == (404, {"detail": "Node not found"})
    assert get("nowhere") == (404, {"detail": "Not Found"})
    assert get("sites?limit=501")[0] == get("sites?offset=-1")[0] == 422
    assert get("sites/edge/flavors")[1]["items"] == []
    service.change(f"{NODES}/{uid}.json", node_name=...)
    assert get(f"{NODES}/{uid}")[1]["node_name"] is None
