"""Run one OpenStack project as one process, in the services' environment: SERVICE FOLDER ADDRESS PORT.

A project's RPC stays in this process (nova's scheduler, conductor and computes; Blazar's manager), so oslo.messaging's
in-memory transport suffices and no broker is needed. Fakes: the hardware (fake_hardware.py), the network's data plane
(agents that are rows in a table), volumes (volumes.py), the reference API (reference_api.py).
"""

import contextlib
import ctypes
import datetime
import gettext
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.testbed.openstack import shortcuts
from tests.testbed.openstack.settings import PORTS

SERVICE, FOLDER, ADDRESS, PORT = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
HERE = FOLDER / SERVICE
Wsgi = Callable[..., object]
POLL_S = 0.25
"""How often Blazar looks for events and for servers that are gone; upstream every 10 and every 5 seconds."""
CONNECTIONS = 1000
"""How many connections a service accepts; with waitress's 100, a client would wait until earlier ones are closed."""
LONGEST_SILENCE_S = 1.0
"""After how long a listener without messages looks again."""


def refapi() -> Wsgi:
    from tests.testbed.openstack.reference_api import ReferenceApi

    return ReferenceApi(HERE)


def keystone() -> Wsgi:
    from keystone.server import wsgi

    return wsgi.initialize_public_application()


def placement() -> Wsgi:
    from placement.wsgi import init_application

    return init_application()


def glance() -> Wsgi:
    from glance.common import wsgi_app

    return wsgi_app.init_app()


def neutron() -> Wsgi:
    os.environ["OS_NEUTRON_CONFIG_FILES"] = "neutron.conf"
    shortcuts.skip_empty_tables()
    from neutron import server
    from neutron.server import api

    app = server.boot_server(api.api_server, prog="neutron-api")
    _report_agents()
    return app


def _report_agents() -> None:
    """Report an agent for each node: neutron binds ports only on hosts with a live one."""
    from neutron_lib import context
    from neutron_lib.plugins import directory
    from oslo_utils import timeutils

    for node in json.loads((FOLDER / "nodes.json").read_text()):
        agent = {
            "agent_type": "Open vSwitch agent",
            "binary": "neutron-openvswitch-agent",
            "host": node,
            "topic": "N/A",
            "start_flag": True,
            "configurations": {
                "bridge_mappings": {"physnet1": "br-ex", "public": "br-public"},
                "tunnel_types": [],
                "datapath_type": "system",
            },
        }
        directory.get_plugin().create_or_update_agent(context.get_admin_context(), agent, timeutils.utcnow())


def nova() -> Wsgi:
    import nova.virt

    from tests.testbed.openstack import fake_hardware

    wake_listeners_at_once()
    fake_hardware.FOLDER = HERE
    sys.modules["nova.virt.pretend_ironic"] = nova.virt.pretend_ironic = fake_hardware
    import os_brick
    import os_vif
    from nova import conf, objects, service

    shortcuts.keep_schemas()
    from nova.wsgi.osapi_compute import application

    wait_until_up("keystone", "placement")
    os_brick.setup(conf.CONF)
    os_vif.initialize()
    objects.Service.enable_min_version_cache()
    nova.running = [_started(service, binary=f"nova-{topic}", topic=topic) for topic in ("conductor", "scheduler")]
    nova.running += [_compute(node) for node in json.loads((FOLDER / "nodes.json").read_text())]
    return application


def _compute(node: str) -> object:
    """Return a compute service whose host and hypervisor are named by the node's UUID, like Ironic's."""
    from nova import conf, context, exception, objects, service
    from nova.compute import rpcapi

    conf.CONF.set_override("host", node)
    running = _started(service, host=node, binary="nova-compute", topic="compute", topic_alt=rpcapi.RPC_TOPIC_ALT)
    admin = context.get_admin_context()
    try:
        objects.HostMapping.get_by_host(admin, node)
    except exception.HostMappingNotFound:
        cell = next(cell for cell in objects.CellMappingList.get_all(admin) if not cell.is_cell0())
        objects.HostMapping(context=admin, host=node, cell_mapping=cell).create()
    conf.CONF.clear_override("host")
    return running


def _started(service: Any, **names: str) -> object:
    made = service.Service.create(**names)
    made.start()
    return made


def volumes() -> Wsgi:
    from tests.testbed.openstack.volumes import Volumes

    HERE.mkdir(exist_ok=True)
    return Volumes(HERE / "stuck")


def blazar() -> Wsgi:
    from oslo_service import backend

    backend.init_backend(backend.BackendType.THREADING)
    wake_listeners_at_once()
    shortcuts.share_tokens()
    shortcuts.share_discovery()
    shortcuts.load_hosts_alone()
    gettext.install("blazar")
    _whole_seconds()
    from blazar.api import wsgi_app

    app = wsgi_app.init_app()
    from blazar.manager import service
    from blazar.notification import notifier

    service.EVENT_INTERVAL = POLL_S
    _poll_deleted_servers()
    notifier.init()
    manager = service.ManagerService()
    blazar.manager = manager  # type: ignore[attr-defined] # it lives as long as the process
    _move_clock_of("blazar.")
    manager.start()
    return app


blazar_kvm = blazar


def _poll_deleted_servers() -> None:
    import retrying

    retrying.Retrying.fixed_sleep = lambda *_: 1000 * POLL_S


def _whole_seconds() -> None:
    """Drop fractions of seconds from times, as MySQL does and clients expect."""
    from sqlalchemy.dialects.sqlite import base

    base.DATETIME._storage_format = base.DATETIME._storage_format.replace(".%(microsecond)06d", "")


def _move_clock_of(package: str) -> None:
    """Let the package's modules read a clock that the file ``clock`` sets ahead, seconds."""
    from oslo_utils import timeutils

    class Clock:
        def __getattr__(self, name):
            return getattr(timeutils, name)

        def utcnow(self, *args, **kwargs):
            try:
                ahead = float((HERE / "clock").read_text())
            except (OSError, ValueError):
                ahead = 0.0
            return timeutils.utcnow(*args, **kwargs) + datetime.timedelta(seconds=ahead)

    for module in list(sys.modules.values()):
        if module.__name__.startswith(package) and getattr(module, "timeutils", None) is timeutils:
            vars(module)["timeutils"] = Clock()


def queue_writers() -> None:
    """Let SQLite's writers wait for each other from their BEGIN on.

    oslo.db begins every transaction without a lock. If two of them read and then write, one fails at once: SQLite's
    timeout does not apply to upgrading a read lock.
    """
    import sqlalchemy
    from oslo_db.sqlalchemy import enginefacade

    factory = enginefacade._TransactionFactory
    new_session, new_connection = factory._create_session, factory._create_connection

    def writing(self):
        if not self._started:
            self._start()
        return self._writer_engine.execution_options(writes=True)

    def session(self, mode, bind=None):
        return new_session(self, mode, writing(self) if mode is enginefacade._WRITER and bind is None else bind)

    def connection(self, mode):
        return writing(self).connect() if mode is enginefacade._WRITER else new_connection(self, mode)

    factory._create_session, factory._create_connection = session, connection

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute", retval=True)
    def begin(connection, cursor, statement, parameters, context, executemany):
        writes = statement == "BEGIN" and connection.get_execution_options().get("writes")
        return ("BEGIN IMMEDIATE" if writes else statement), parameters


def wait_until_up(*services: str) -> None:
    """Wait until other services listen, for a service that queries them while it starts: all start at the same time."""
    for service in services:
        while True:
            with contextlib.suppress(OSError), socket.create_connection((ADDRESS, PORTS[service])):
                break
            time.sleep(POLL_S)


def wake_listeners_at_once() -> None:
    """Wake the listeners of the in-memory transport by each message; unchanged, they look for one 20 times a second."""
    from oslo_messaging._drivers import impl_fake

    arrivals = Arrivals()
    deliver = impl_fake.FakeExchange.deliver_message

    def deliver_message(self, *message, **options):
        deliver(self, *message, **options)
        arrivals.notify()

    impl_fake.FakeExchange.deliver_message = deliver_message
    impl_fake.time = arrivals


class Arrivals:
    """The listeners' clock: a sleep ends when a message has arrived since the thread's last sleep."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._number = 0
        self._seen = threading.local()

    def notify(self) -> None:
        with self._arrived:
            self._number += 1
            self._arrived.notify_all()

    def sleep(self, seconds: float) -> None:
        with self._arrived:
            if getattr(self._seen, "number", -1) == self._number:
                self._arrived.wait(LONGEST_SILENCE_S)
            self._seen.number = self._number


def exit_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def application() -> Wsgi:
    if SERVICE == "nova":
        from nova import monkey_patch

        monkey_patch.patch(backend="threading")
    if SERVICE not in ("refapi", "volumes"):
        shortcuts.keep_connections()
        shortcuts.never_yield()
        queue_writers()
        shortcuts.read_policies_once()
    return globals()[SERVICE]()


def main() -> None:
    exit_with_parent()
    sys.argv = [SERVICE.partition("_")[0]]
    os.environ[f"OS_{SERVICE.partition('_')[0].upper()}_CONFIG_DIR"] = str(HERE)
    try:
        with shortcuts.without_garbage_collection():
            app = application()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    import waitress

    many = {"connection_limit": CONNECTIONS, "asyncore_use_poll": True}
    waitress.serve(app, host=ADDRESS, port=PORT, threads=8, _quiet=True, clear_untrusted_proxy_headers=False, **many)


if __name__ == "__main__":
    main()
