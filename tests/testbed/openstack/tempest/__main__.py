"""Run the tests of Blazar's developers, blazar-tempest-plugin, against the testbed's services.

    python -m tests.testbed.openstack.tempest [--tests REGEX] [--out FILE]

By default, these are the tests of the API. `--tests scenario` runs the tests that also boot servers; no outcome of
these is stored yet. The tests of flavors run at KVM@TACC, all others at CHI@UC, as an administrator. FILE gets each
test's outcome. For a test that fails or is skipped, differences.yaml names how the testbed, or Chameleon, differs from
the site for which the test was written; a test without such a reason is an error. Chameleon's own fork of the plugin,
ChameleonCloud/chi-blazar-tempest-plugin, is not on PyPI.
"""

import argparse
import configparser
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import openstack

from tests.testbed.openstack import hardware
from tests.testbed.openstack.environment import environment
from tests.testbed.openstack.local_openstack import LocalOpenStack, open_local_openstack
from tests.testbed.openstack.settings import PORTS
from tests.testbed.outcomes import differences, unexplained, write_outcomes

HERE = Path(__file__).parent
COMMAND = "python -m tests.testbed.openstack.tempest"
FRONT_PORT = 8081
SITES = {hardware.BARE_METAL: ("blazar", r"(?!.*test_flavor)"), hardware.KVM: ("blazar_kvm", r"(?=.*test_flavor)")}
"""The reservation service of each site, and the tests that run there."""
API = r"tests\.api"
VERSIONS = ("tempest", "blazar_tempest_plugin")


def main() -> None:
    """Run the tests at both sites, print the outcomes, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", default=API, help="regular expression of tests (default: those of the API)")
    parser.add_argument("--out", type=Path, help="file for the outcomes")
    options = parser.parse_args()
    reasons = differences(HERE)
    tests = [{**test, "reason": reason_of(test, reasons)} for test in run_all(options.tests)]
    print(json.dumps(write_outcomes(options.out, COMMAND, pinned(), tests)))
    if missing := unexplained(tests):
        sys.exit(f"without a reason in differences.yaml: {', '.join(missing)}")


def reason_of(test: dict[str, Any], reasons: dict[str, str]) -> str:
    """Return the reason why a test does not pass; '' for a test that passes, or has none."""
    found = (reason for name, reason in reasons.items() if name in test["test"])
    return "" if test["outcome"] == "passed" else next(found, "")


def pinned() -> dict[str, str]:
    """Return the versions of tempest and the plugin."""
    lines = (line.partition("==") for line in (HERE / "requirements.txt").read_text().splitlines())
    return {name: version for name, _, version in lines if name in VERSIONS}


def run_all(only: str) -> list[dict[str, Any]]:
    """Start the services, run the tests of each site, and return their outcomes."""
    with tempfile.TemporaryDirectory(prefix="testbed-tempest-") as folder:
        (services := Path(folder) / "services").mkdir()
        local_openstack = open_local_openstack(services)
        try:
            return [test for site in SITES for test in run_site(local_openstack, site, only, Path(folder))]
        finally:
            local_openstack.stop()


def run_site(local_openstack: LocalOpenStack, site: str, only: str, folder: Path) -> list[dict[str, Any]]:
    """Run the tests of a site; return their outcomes."""
    blazar, pattern = SITES[site]
    admin = administrator(local_openstack, site)
    write_config(local_openstack, site, admin, folder / "tempest.conf")
    outer = f"http://{local_openstack.place.outer}"
    task = {
        "config": str(folder / "tempest.conf"),
        "address": local_openstack.place.outer,
        "port": FRONT_PORT,
        "services": {"compute": f"{outer}:{PORTS['nova']}", "reservation": f"{outer}:{PORTS[blazar]}"},
        "pattern": f"^(?=.*{only}){pattern}",
        "out": str(folder / "outcomes.json"),
    }
    python = environment("tempest") / "bin" / "python"
    subprocess.run([python, HERE / "runner.py", json.dumps(task)], cwd=folder, check=True)
    return [{"site": site, **test} for test in json.loads((folder / "outcomes.json").read_text())]


def administrator(local_openstack: LocalOpenStack, site: str) -> Any:
    """Return a connection to a site as an administrator."""
    return openstack.connect(
        auth_url=f"http://{local_openstack.place.outer}:{PORTS['keystone']}/v3",
        username="admin",
        password=local_openstack.passwords["admin"],
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
        region_name=site,
    )


def write_config(local_openstack: LocalOpenStack, site: str, admin: Any, file: Path) -> None:
    """Write tempest's configuration of a site."""
    flavor = "baremetal" if site == hardware.BARE_METAL else next(iter(hardware.FLAVORS))
    config = configparser.RawConfigParser()
    config.read_dict(
        {
            "DEFAULT": {"log_file": str(file.with_name("tempest.log")), "use_stderr": "false"},
            "oslo_concurrency": {"lock_path": str(file.parent)},
            "auth": {
                "use_dynamic_credentials": "true",
                "create_isolated_networks": "false",
                "admin_username": "admin",
                "admin_password": local_openstack.passwords["admin"],
                "admin_project_name": "admin",
                "admin_domain_name": "Default",
            },
            "identity": {"uri_v3": f"http://{local_openstack.place.outer}:{PORTS['keystone']}/v3", "region": site},
            "compute": {
                "image_ref": admin.image.find_image(hardware.IMAGE).id,
                "flavor_ref": admin.compute.find_flavor(flavor).id,
                "fixed_network_name": "sharednet1",
            },
            "network": {"public_network_id": admin.network.find_network("public").id},
            "validation": {"run_validation": "false"},
            "service_available": {"cinder": "false", "swift": "false", "blazar": "true"},
        }
    )
    with file.open("w") as stream:
        config.write(stream)


if __name__ == "__main__":
    main()
