"""A command in a child process: crashes, time limits and signals of the child are told and outlived by its parent."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from adbench.utils.signals import as_interrupts, exit_code
from adbench.utils.supervisor import ending, supervised

def work(name):
    journal.begin(name)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "leave":
        os._exit(130)
    if name == "stuck":
        time.sleep(60)
    if name == "deaf":
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
    if name == "wait":
        print("waits", flush=True)
        time.sleep(60)
    if name == "ignores":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("ignores", flush=True)
        time.sleep(60)
    if name == "closes":
        os.closerange(3, 4096)
        kept = [open("/dev/null", "a") for _ in range(9)]  # one of which has the number of what was closed
    if name == "tells all":
        os.killpg(0, signal.SIGKILL)
    journal.end(name)

with as_interrupts(), ending():
    journal = supervised(float(sys.argv[1]))
    try:
        for name in sys.argv[2:]:
            if name not in journal.ended:
                work(name)
                if name == "changes":
                    threading.Thread(target=time.sleep, args=(60,)).start()
                    journal.hand_over()
    except KeyboardInterrupt:
        journal.leave()
        print("in order", flush=True)
        sys.exit(exit_code())
print(json.dumps({name: [one.reason, one.died] for name, one in journal.ended.items()}))
sys.exit(5)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_child_that_dies_takes_one_cell_with_it() -> None:
    process = start("60", "good", "crash", "leave", "last")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 5
    assert "SIGSEGV" in said
    assert "exit code 130" in said
    assert said.count("true") == 2
    assert '"good": ["", false]' in said
    assert "last" not in said, "it had not ended before the last child began"


def test_a_cell_that_takes_too_long_has_failed_even_when_it_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = SCRIPT.replace("def work", "import adbench.utils.supervisor as s\ns.GRACE = .3\ndef work")
    begin = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", quick, "0.3", "stuck", "deaf", "good"], capture_output=True, text=True)
    assert time.monotonic() - begin < 20
    assert ran.returncode == 5
    assert ran.stdout.count("it took longer than --time-limit (0.3 s)") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_both_in_order(number: signal.Signals, code: int) -> None:
    process = start("60", "wait", "good")
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "in order\n"
    assert process.returncode == code


def test_a_child_does_not_outlive_its_parent() -> None:
    process = start("60", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.kill()
    assert process.stdout.readline() == "in order\n"  # within a second, and the pipe is closed by its end
    assert process.stdout.read() == ""
    process.wait()


def test_a_process_that_computes_already_is_not_forked(tmp_path: Path) -> None:
    script = "import sys, types; sys.modules['numpy'] = types.ModuleType('numpy')\n"
    script += "from adbench.utils.supervisor import supervised; supervised(); print(len(sys.modules['os'].listdir('/proc/self/task')))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "1\n"
    refused = subprocess.run(
        [sys.executable, "-c", script.replace("supervised()", "supervised(3)")], capture_output=True, text=True
    )
    assert "UserError: --time-limit ends a process of its own, but numpy was loaded" in refused.stderr


def test_another_child_goes_on_where_one_asks_for_it_whatever_threads_it_leaves() -> None:
    begin = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, "60", "good", "changes", "last"], capture_output=True, text=True
    )
    assert time.monotonic() - begin < 30
    assert (ran.returncode, json.loads(ran.stdout)) == (5, {"good": ["", False], "changes": ["", False]})


def test_what_a_child_does_to_its_group_or_its_files_reaches_no_other() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, "60", "good", "tells all", "closes", "last"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (5, "")
    said = json.loads(ran.stdout)
    assert "SIGKILL" in said["tells all"][0]
    assert said["closes"] == ["it has closed files that adbench had opened", True]


def test_the_keys_of_a_terminal_reach_the_child() -> None:
    ours, theirs = os.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY)

    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "60", "wait", "good"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    os.write(ours, b"\x03")  # Ctrl-C
    assert process.communicate(timeout=30)[0] == "in order\n"
    assert process.returncode == 130
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("killed", [False, True])
def test_a_job_that_is_stopped_and_goes_on(killed: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "60", "wait"], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    (child,) = psutil.Process(process.pid).children()
    both = (child, psutil.Process(process.pid))

    def wait_until(stopped: bool) -> None:
        end = time.monotonic() + 20
        while any((one.status() == psutil.STATUS_STOPPED) != stopped for one in both):
            assert time.monotonic() < end
            time.sleep(0.05)

    process.send_signal(signal.SIGTSTP)  # Ctrl-Z
    wait_until(True)
    if not killed:
        process.send_signal(signal.SIGCONT)
        wait_until(False)
    process.send_signal(signal.SIGKILL if killed else signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "in order\n"


def test_a_second_signal_ends_a_child_that_does_not_listen() -> None:
    quick = SCRIPT.replace("def work", "import adbench.utils.supervisor as s\ns.GRACE, s._ONE_WISH = .2, .05\ndef work")
    process = subprocess.Popen(
        [sys.executable, "-c", quick, "60", "ignores", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ignores\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, ""), "the next cell has not begun"
    assert "Interrupted" in complained
