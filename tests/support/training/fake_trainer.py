"""Fake of experiments.training.rank that does not train; started with the same arguments. FAKE selects its behavior."""

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRESS = """{"phase": "backward", "step": 3, "micro_steps": 7, "planned_micro_steps": 9, "allocated_gib": 1.25,
"memory": {"peak_gib": 1.5}, "left_s": 2.0}"""


COMPILER = """c++ -c cpu_adam.cpp -o cpu_adam.o
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated."""


def hang() -> None:
    time.sleep(600)


def main() -> int:
    behavior, out = os.environ["FAKE"], Path(sys.argv[-1])
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    print("arguments:", *sys.argv[1:], flush=True)
    (out / "started.txt").write_text(f"{os.getpid()} {os.getpgid(0)} {Path('/proc/self/oom_score_adj').read_text()}")
    if behavior == "never starts":
        hang()
    if behavior == "starts late":
        time.sleep(2.5)
    if behavior in ("fits", "child", "starts late"):
        shutil.copy(os.environ["MEASURED"], out / "measured.json")
    if behavior == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (out / "child.txt").write_text(str(child.pid))
    if behavior == "reject":
        reason = "captions: has 3 captioned images, the row trains on 512"
        print(f"a warning\n{reason}", file=sys.stderr)
        (out / "rejection.txt").write_text(reason)
        return 2
    if behavior in ("killed", "oom", "hang", "starts late"):
        (out / "progress.json.part").write_text(PROGRESS)
        (out / "progress.json.part").rename(out / "progress.json")
        time.sleep(0.3)
    if behavior == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behavior == "oom":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has", flush=True)
        return 1
    if behavior == "compiler":
        print(COMPILER, flush=True)
        return 1
    if behavior == "error":
        print("RuntimeError: shapes differ", flush=True)
        return 1
    if behavior == "hang":
        hang()
    return 1 if behavior == "silent" else 0


if __name__ == "__main__":
    sys.exit(main())
