"""Create a project's empty database, in the services' environment: PROJECT FOLDER PASSWORD REGION OUTER INNER.

Neutron's and Blazar's migrations do not run on SQLite; their tables are created from their models. A project's manage
command is loaded once and forked for each step.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

PROJECT, FOLDER, PASSWORD, REGION = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5]


def keystone() -> None:
    from keystone.cmd import manage

    owner = ["--keystone-user", "root", "--keystone-group", "root"] if os.getuid() == 0 else []
    outer, inner = sys.argv[5:7]
    urls = [f"--bootstrap-{kind}-url={url}" for kind, url in (("public", outer), ("internal", inner), ("admin", inner))]
    _manage(manage.main, "keystone.conf", ["db_sync"])
    _manage(manage.main, "keystone.conf", ["fernet_setup", *owner])
    _manage(manage.main, "keystone.conf", ["credential_setup", *owner])
    account = [f"--bootstrap-password={PASSWORD}", f"--bootstrap-region-id={REGION}"]
    _manage(manage.main, "keystone.conf", ["bootstrap", *account, *urls])


def nova() -> None:
    os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"
    sys.argv = ["nova-manage"]
    from nova.cmd import manage

    cell0 = ["map_cell0", "--database_connection", _sqlite("nova_cell0")]
    cell1 = ["create_cell", "--name=cell1", "--transport-url=fake:///", "--database_connection", _sqlite("nova")]
    _manage(manage.main, "nova.conf", ["api_db", "sync"])
    _manage(manage.main, "nova.conf", ["cell_v2", *cell0])
    _manage(manage.main, "nova.conf", ["db", "sync"])
    _manage(manage.main, "nova.conf", ["cell_v2", *cell1])


def glance() -> None:
    from glance.cmd import manage

    _manage(manage.main, "glance-api.conf", ["db_sync"])


def neutron() -> None:
    from neutron.db.migration.models import head
    from sqlalchemy import create_engine

    head.get_metadata().create_all(create_engine(f"sqlite:///{FOLDER}/db/neutron.db"))


def blazar() -> None:
    import blazar.config  # noqa: F401
    from oslo_config import cfg
    from oslo_db import options

    options.set_defaults(cfg.CONF)
    cfg.CONF(["--config-file", str(FOLDER / PROJECT / "blazar.conf")], project="blazar")
    from blazar.db.sqlalchemy import api

    api.setup_db()


blazar_kvm = blazar


def _sqlite(name: str) -> str:
    return f"sqlite:///{FOLDER}/db/{name}.db?timeout=60"


def _manage(main: Callable[[], object], conf: str, command: list[str]) -> None:
    child = os.fork()
    if not child:
        os._exit(_exit_code(main, [f"{PROJECT}-manage", "--config-file", str(FOLDER / PROJECT / conf), *command]))
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{PROJECT}-manage {command[0]} failed")


def _exit_code(main: Callable[[], object], arguments: list[str]) -> int:
    sys.argv = arguments
    try:
        return int(bool(main()))
    except SystemExit as end:
        return int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    globals()[PROJECT]()
