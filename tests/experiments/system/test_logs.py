"""The errors that are read from logs, tracebacks and signals. The logs are those of real programs."""

import signal
import subprocess
import sys
from typing import Any

import pytest

from experiments.system.logs import (
    describe_signal,
    error_line,
    error_message,
    last_lines,
    location_in_log,
    location_of_error,
)

OURS = "/code/experiments/training/engines/own.py"
COMPILER = """[1/3] c++ -MMD -MF cpu_adam.o.d -c cpu_adam.cpp -o cpu_adam.o
FAILED: cpu_adam.o
c++ -MMD -MF cpu_adam.o.d -c cpu_adam.cpp -o cpu_adam.o
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated.
ninja: build stopped: subcommand failed.
"""
DUMP = """Loading
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f02 (most recent call first):
  File "/env/lib/python3.11/site-packages/torch/utils/cpp_extension.py", line 2506 in _run_ninja_build
  File "/env/lib/python3.11/site-packages/deepspeed/ops/op_builder/builder.py", line 560 in jit_load
  File "/code/experiments/training/engines/strategies.py", line 88 in optimizer
  File "/code/experiments/training/rank.py", line 121 in <module>
  File "<frozen runpy>", line 88 in _run_code
  File "<frozen runpy>", line 198 in _run_module_as_main
"""


def function_of_module(source):
    """Return the function ``called`` of a module whose path is like one of this project."""
    names: dict[str, Any] = {}
    exec(compile(source, OURS, "exec"), names)
    return names["called"]


def test_the_location_of_an_error_is_a_line_of_this_project_and_the_library_that_it_called():
    with pytest.raises(ValueError, match="Expecting") as caught:
        function_of_module("import json\ndef called(text):\n    json.loads(text)\n")("{")
    assert location_of_error(caught.value).startswith(
        "experiments/training/engines/own.py:3 in called, which called json/"
    )
    with pytest.raises(ZeroDivisionError) as divided:
        function_of_module("def called():\n    1 / 0\n")()
    assert location_of_error(divided.value) == "experiments/training/engines/own.py:2 in called"


def test_the_location_of_a_hang_is_taken_from_the_thread_that_runs_code_of_this_project():
    assert location_in_log(DUMP) == (
        "experiments/training/engines/strategies.py:88 in optimizer, "
        "which called torch/utils/cpp_extension.py:2506 in _run_ninja_build"
    )
    assert location_in_log("no stack") == ""


DUMPING_PROGRAM = f"""
import faulthandler, sys, threading
waiting, ended, names = threading.Event(), threading.Event(), {{}}
exec(compile("def called(a, b):\\n    a.set()\\n    b.wait()\\n", {OURS!r}, "exec"), names)
thread = threading.Thread(target=names["called"], args=(waiting, ended))
thread.start()
waiting.wait()
faulthandler.dump_traceback(sys.stdout, all_threads=True)
ended.set()
thread.join()
"""


def test_the_location_of_a_hang_is_found_in_a_real_dump_of_stack_traces():
    dump = subprocess.run([sys.executable, "-c", DUMPING_PROGRAM], capture_output=True, text=True, check=True).stdout
    assert "experiments/training/engines/own.py:3 in called, which called threading.py:" in location_in_log(dump)


def test_the_error_line_is_neither_a_stack_frame_nor_a_line_after_the_error():
    assert error_line(DUMP, "nothing") == "Loading"
    problem = error_line(COMPILER.replace("ninja: build stopped: subcommand failed.\n", ""), "")
    assert problem.startswith("c++: fatal error: Killed signal terminated program cc1plus (the compiler was killed")
    assert error_line("", "nothing") == "nothing"


def test_the_error_line_of_a_traceback_is_its_last_line():
    ran = subprocess.run([sys.executable, "-c", "import json; json.loads('{')"], capture_output=True, text=True)
    assert error_line(ran.stderr + "bye\n", "").startswith("json.decoder.JSONDecodeError: Expecting property name")


def test_of_an_error_message_of_many_lines_the_error_line_is_that_of_the_compiler():
    message = error_message(RuntimeError(f"Error building extension 'cpu_adam': {COMPILER}"))
    assert message.startswith("Error building extension 'cpu_adam': ")
    assert "c++: fatal error: Killed signal terminated program cc1plus" in message
    assert "\n" not in message
    assert error_message(ValueError()) == "ValueError"


def test_a_signal_is_named_with_its_usual_meaning():
    assert (
        describe_signal(signal.SIGKILL)
        == "killed by SIGKILL, usually because the host ran out of memory, or because a user killed it"
    )
    assert describe_signal(signal.SIGUSR2) == "killed by SIGUSR2"
    assert describe_signal(99) == "killed by signal 99"


def test_the_last_ten_lines_of_a_log_are_stored():
    assert last_lines("\n".join(f"line {number}\n" for number in range(30))) == tuple(
        f"line {n}" for n in range(20, 30)
    )
