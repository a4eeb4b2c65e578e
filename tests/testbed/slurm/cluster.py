"""A Slurm cluster for tests. The GPUs are links to /dev/null: Slurm assigns them, but nothing can compute on them.

If root runs the tests, a temporary user submits the jobs; otherwise the current user. Needs the packages slurm-wlm,
munge and openssh-server; their own services are neither needed nor touched.
"""

import getpass
import os
import pwd
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from experiments.system.files import cache_folder
from experiments.system.processes import find_tagged, kill_tagged
from experiments.system.signals import die_with_parent
from provision.ssh.login import Login
from tests.support.services.sshd import Sshd
from tests.testbed.openstack.environment import locked

NEEDS = ("slurmctld", "slurmd", "munged", "sshd")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = "slurm-wlm munge openssh-server"
REPOSITORY = Path(__file__).resolve().parents[3]
CPUS, MEMORY_MIB = 8, 8192
START_LIMIT_S = 600.0
END_LIMIT_S = 15.0

CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd.%n.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerNode=1024
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout={lost_s}
MinJobAge={kept_s}
"""
PARTITION = "PartitionName=gpu Nodes=ALL Default=YES DefaultTime=10:00 MaxTime=600:00 State=UP\n"


class Cluster:
    """The cluster, its files in ``state``; ``gpus`` is how many GPUs of ``kind`` each node has.

    A node that is silent for ``lost_s`` is lost; Slurm forgets jobs ``kept_s`` after their end. The names of nodes
    differ from those of other clusters on this machine: killing a node kills the processes that carry its name.
    """

    def __init__(
        self, state: Path, gpus: Sequence[int] = (4,), kind: str = "v100", lost_s: int = 30, kept_s: int = 300
    ) -> None:
        self.state = state.resolve()
        mark = secrets.token_hex(3)
        self.nodes = [f"harness-{mark}-node{number}" for number in range(len(gpus))]
        self.kind, self.gpus = kind, tuple(gpus)
        self.conf = self.state / "slurm.conf"
        self._timing = {"lost_s": lost_s, "kept_s": kept_s}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.user = f"testbed{mark}" if os.getuid() == 0 else getpass.getuser()

    @property
    def home(self) -> Path:
        return Path(pwd.getpwnam(self.user).pw_dir)

    def start(self) -> "Cluster":
        for name in ("ctld", "log", "run", "spool", "dev", "munge"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.state, self.state / "munge"):
            folder.chmod(0o755)
        if os.getuid() == 0:
            home = ["--create-home", "--home-dir", str(self.state / "home"), "--shell", "/bin/bash"]
            with locked(cache_folder() / "useradd"):
                subprocess.run(["useradd", *home, "--password", "*", self.user], check=True)
        self._configure()
        munge = self.state / "munge"
        files = [
            ("key-file", "key"),
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        ]
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o600)
        self._run(
            "munged", ["munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in files)]
        )
        _wait_for((munge / "socket").exists)
        self._run("slurmctld", ["slurmctld", "-D", "-i"])
        for node in self.nodes:
            self.start_node(node)
        self._sshd = Sshd(
            self.state / "sshd", {"SetEnv": f"SLURM_CONF={self.conf}"}, self._in_mount_namespace()
        ).start()
        _wait_for(lambda: self.states() == ["idle"] * len(self.nodes))
        return self

    def stop(self) -> None:
        """Stop all of it, including jobs; only the files are left."""
        self.query("scancel", "--user", self.user, check=False)
        with suppress(TimeoutError):
            _wait_for(lambda: not self.query("squeue", "--noheader", check=False), END_LIMIT_S)
        for process in self._started.values():
            process.kill()
            process.wait()
        self._sshd.stop()
        kill_tagged("SLURM_CONF", str(self.conf), END_LIMIT_S)
        if os.getuid() == 0:
            with locked(cache_folder() / "useradd"):
                subprocess.run(["userdel", "--remove", "--force", self.user], check=True, capture_output=True)

    def login(self) -> Login:
        return self._sshd.login(self.user)

    @property
    def sshd(self) -> Sshd:
        return self._sshd

    def start_node(self, node: str) -> None:
        (self.state / "spool" / node).mkdir(exist_ok=True)
        self._run(node, [*self._in_mount_namespace(), "slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """Kill the daemon and its jobs, like a power failure."""
        self._started[node].kill()
        self._started[node].wait()
        above = {one for task in find_tagged("SLURMD_NODENAME", node) for one in task.parents()}
        for process in above:
            if process.name() == "slurmstepd":
                process.kill()
        kill_tagged("SLURMD_NODENAME", node, END_LIMIT_S)

    def states(self) -> list[str]:
        return self.query("sinfo", "--noheader", "--Node", "--format", "%T", check=False).split()

    def query(self, *command: str, check: bool = True) -> str:
        """Return the output of a Slurm command."""
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=check).stdout

    def _configure(self) -> None:
        (host, *_), me = socket.gethostname().split("."), getpass.getuser()
        ports = _free_ports(1 + len(self.nodes))
        lines = [CONF.format(host=host, port=ports[0], me=me, state=self.state, **self._timing)]
        devices = []
        for node, port, count in zip(self.nodes, ports[1:], self.gpus, strict=True):
            gres = f" Gres=gpu:{self.kind}:{count}" if count else ""
            place = f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            lines.append(f"{place} CPUs={CPUS} RealMemory={MEMORY_MIB}{gres}\n")
            for number in range(count):
                (self.state / "dev" / f"gpu{number}").unlink(missing_ok=True)
                (self.state / "dev" / f"gpu{number}").symlink_to("/dev/null")
            if count:
                files = f"{self.state}/dev/gpu[0-{count - 1}]"
                devices.append(f"NodeName={node} Name=gpu Type={self.kind} File={files}\n")
        self.conf.write_text("".join([*lines, PARTITION]))
        (self.state / "gres.conf").write_text("".join(devices))

    def _in_mount_namespace(self) -> list[str]:
        """Return a command prefix: a mount namespace in which everybody may read this Python and the checkout."""
        if os.getuid() != 0:
            return []
        home = Path.home().resolve()
        wanted = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, REPOSITORY)}
        kept = [
            (path, self.state / "seen" / str(number))
            for number, path in enumerate(sorted(wanted))
            if home in path.parents
        ]
        lines = ["set -e", "mount --make-rprivate /"]
        lines += [f"mkdir -p {place} && mount --bind {path} {place}" for path, place in kept]
        lines += [f"mount -t tmpfs -o mode=755 tmpfs {home}"]
        lines += [f"mkdir -p {path} && mount --bind {place} {path}" for path, place in kept]
        return ["unshare", "--mount", "sh", "-c", "\n".join([*lines, 'exec "$@"']), "sh"]

    def _run(self, name: str, command: Sequence[str]) -> None:
        environment = {**self._environment, "PATH": f"{PATH}:{os.environ['PATH']}"}
        with (self.state / "log" / f"{name}.out").open("ab") as log:
            self._started[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )


@contextmanager
def started(
    gpus: Sequence[int], prepared: Callable[[Path], AbstractContextManager[object]] = nullcontext
) -> Iterator[Cluster]:
    """Run a cluster while the body runs; ``gpus`` is the number of GPUs of each node.

    prepared: mounts something in the cluster's folder; its daemons see only what is mounted before they start.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-") as state, prepared(Path(state)):
        made = Cluster(Path(state), gpus)
        try:
            yield made.start()
        finally:
            made.stop()


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _wait_for(condition: Callable[[], object], within_s: float = START_LIMIT_S) -> None:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the cluster did not come up; its logs are in its folder")
        time.sleep(0.05)
