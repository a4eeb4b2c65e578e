"""Rehearse with four faults in one run: firewalld, a slow package mirror, a changed end of the lease, a killed client.

    python -m tests.testbed.chain.rehearse_faults [RESULTS]

The client is killed (SIGKILL) when its first row has ended. Then somebody lets the lease end so early that no further
row may start, and the command is repeated. While it runs, somebody extends the lease. faults.json, in a new folder in
RESULTS, has each check with its evidence; a fault that did not happen is an error, too.
"""

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from experiments.results.provenance import git_commit
from experiments.results.schema import RESULT_FILE, SPEC_FILE
from experiments.results.wording import format_duration
from experiments.runners.local.runner import GRACE_S
from experiments.runners.slurm.job_script import JobSpec
from experiments.runners.slurm.runner import LEASE_RESERVE_S
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from provision.leasing.journal import Journal, Operation
from provision.models import Lease
from tests.support.needs import missing
from tests.testbed.chain.cli_user import CliUser, Command
from tests.testbed.chain.client import ROWS
from tests.testbed.chain.faults import Check, SlowMirror, check_firewall, set_end
from tests.testbed.chain.rehearse import LEFT, PACKAGES, PROGRAMS, cloud_with_nodes
from tests.testbed.chameleon.conftest import left_at

COMMAND = "make rehearse faults=1"
ROW_ENDS = rf"(?:{'|'.join(ROWS)}): (?!starts)"
LONGER = timedelta(hours=1)
REQUEST_OF_A_LEASE = b"POST /v1/leases"


class Rehearsal:
    """One rehearsal with all faults; ``run`` yields its checks."""

    def __init__(self, user: CliUser, mirror: SlowMirror) -> None:
        self._user, self._mirror = user, mirror
        self._site = user.cloud.site
        self._requests = user.cloud.local_openstack.proxies["blazar"].recorded_traffic = bytearray()

    def run(self) -> Iterator[Check]:
        client = self._user.start_reproduce()
        client.until(ROW_ENDS)
        client.kill()
        yield Check("fault: the client is killed", client.end() == -signal.SIGKILL, f"exit code {client.end()}")
        yield self._mirror.check()
        yield check_firewall(self._user.node)
        before, results, submitted = self._lease(), self._files(RESULT_FILE), set(self._files(SPEC_FILE))
        early = set_end(self._site, before, datetime.now(UTC) + timedelta(seconds=self._needed_s()))
        again = self._user.start_reproduce()
        again.until(r"\[6/7\] run")
        extended = set_end(self._site, before, before.end + LONGER)
        yield _check_extension(before, extended, again)
        code = again.end()
        yield Check("the repeated command succeeds", code == 0, f"exit code {code}")
        yield self._check_one_lease(again)
        yield _check_finished(results, self._files(RESULT_FILE))
        yield _check_running(submitted - results.keys(), again)
        yield self._check_rows_after(early, submitted)
        yield self._check_outcomes()
        yield self._check_nothing_left()

    def _lease(self) -> Lease:
        (lease,) = self._site.leases()
        return lease

    def _files(self, name: str) -> dict[str, bytes]:
        """Return the contents of the rows' files of that name, by row."""
        return {path.parent.name: path.read_bytes() for path in self._user.results.glob(f"*/*/*/{name}")}

    def _needed_s(self) -> float:
        """Return how long a lease must last so that a row is started, seconds."""
        return max(_limit_s(text) for text in self._files(SPEC_FILE).values()) + LEASE_RESERVE_S

    def _check_one_lease(self, again: Command) -> Check:
        asked = self._requests.count(REQUEST_OF_A_LEASE)
        resumed = "resuming it" in again.output and asked == 1
        return Check("the same lease is resumed", resumed, f"requests of a lease, of all commands: {asked}")

    def _check_rows_after(self, early: Lease, submitted: set[str]) -> Check:
        """Check that rows were submitted that the earlier end did not allow: so the client followed the later one."""
        begun = {path.parent.name: path.stat().st_mtime for path in self._user.results.glob(f"*/*/*/{SPEC_FILE}")}
        needed = {row: _limit_s(text) + LEASE_RESERVE_S for row, text in self._files(SPEC_FILE).items()}
        later = {row: begun[row] + needed[row] - early.end.timestamp() for row in begun.keys() - submitted}
        names = ", ".join(f"{row} (by {seconds:.0f} s)" for row, seconds in sorted(later.items()))
        follows = bool(later) and min(later.values()) > 0
        return Check("the extended end is followed", follows, f"too late for the end before it: {names or 'no row'}")

    def _check_outcomes(self) -> Check:
        outcomes = {row: json.loads(text)["outcome"] for row, text in self._files(RESULT_FILE).items()}
        words = ", ".join(f"{row} {outcome}" for row, outcome in sorted(outcomes.items()))
        return Check("every row has its outcome", outcomes == dict.fromkeys(ROWS, "fits"), words)

    def _check_nothing_left(self) -> Check:
        orphans = self._user.start_command("orphans")
        nothing = orphans.end() == 0 and not left_at(self._site) and not Journal().active_leases()
        return Check("the lease has ended and nothing is left", nothing, " ".join(orphans.output.split()))


def _limit_s(spec: bytes) -> float:
    return JobSpec(RowSpec.model_validate_json(spec), "", "", GRACE_S).limit_s


def _check_extension(before: Lease, extended: Lease, again: Command) -> Check:
    by_client = [one for one in Journal().entries() if one.operation == Operation.EXTEND_LEASE]
    happened = extended.end == before.end + LONGER and again.is_running and not by_client
    evidence = f"from {before.end:%H:%M} to {extended.end:%H:%M}, in Blazar and not in the journal"
    return Check("fault: somebody else extends the lease during the run", happened, evidence)


def _check_finished(before: dict[str, bytes], now: dict[str, bytes]) -> Check:
    same = bool(before) and before.items() <= now.items()
    return Check("a finished row does not run again", same, f"unchanged results: {', '.join(before) or 'none'}")


def _check_running(running: set[str], again: Command) -> Check:
    tracked = [row for row in running if re.search(rf"{row}: starts \((job \d+ is already|its job has)", again.output)]
    evidence = f"tracked jobs: {', '.join(tracked) or 'none'}"
    return Check("a running row is not submitted again", len(tracked) == len(running), evidence)


def main() -> int:
    if wants := missing(PROGRAMS, PACKAGES, root=True):
        print(f"rehearse: needs {wants}: it boots a node under systemd-nspawn", file=sys.stderr)
        return 2
    results = (
        Path(sys.argv[1] if len(sys.argv) > 1 else "results").resolve() / f"faults-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    )
    begun, commit = time.monotonic(), git_commit()
    with (
        tempfile.TemporaryDirectory(prefix="testbed-rehearsal-") as folder,
        closing(SlowMirror()) as mirror,
        cloud_with_nodes(Path(folder), mirror.redirect) as started,
    ):
        checks = rehearse(CliUser(started, results), mirror)
        started.copy_logs(results)
    took_s = round(time.monotonic() - begun)
    facts = {
        "command": COMMAND,
        "git_commit": commit,
        "wall_s": took_s,
        "checks": [one._asdict() for one in checks],
    }
    write_atomically(results / "faults.json", json.dumps(facts, indent=1) + "\n")
    failed = [one.name for one in checks if not one.holds]
    print(f"rehearsed with faults in {format_duration(took_s)}; failed checks: {'; '.join(failed) or 'none'}")
    return LEFT if failed else 0


def rehearse(user: CliUser, mirror: SlowMirror) -> list[Check]:
    """Rehearse; print and return the checks."""
    checks = []
    try:
        for check in Rehearsal(user, mirror).run():
            print(f"{'ok' if check.holds else 'FAILED'}: {check.name} ({check.evidence})", flush=True)
            checks.append(check)
    finally:
        user.end_all_commands()
    return checks


if __name__ == "__main__":
    sys.exit(main())
