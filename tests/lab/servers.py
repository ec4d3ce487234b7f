"""Child processes that serve on a port of their own, and never outlive the tests."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

LOOPBACK = "127.0.0.1"

# The kernel sends the parent-death signal when the *thread* that forked ends, so every
# child is started from this one, which lives as long as the interpreter.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab-spawner")

# Suites that run side by side take every other port each.
_PORTS = range(
    20000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]),
    32000,
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)
_handed_out: set[int] = set()


class ServerError(Exception):
    """A server did not come up, or did not go down; the text holds the end of its log."""


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, never handed out twice.

    It lies below the ephemeral range. A client that keeps connecting to a closed port of
    that range ends up connected to itself, and the restarted server finds its port taken.
    """
    for port in random.sample(_PORTS, 200):
        if port not in _handed_out and _can_bind(port):
            _handed_out.add(port)
            return port
    raise ServerError("no free port between 20000 and 32000")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def raise_descriptor_limit(wanted: int) -> None:
    """Let this process have so many open files, or as many as it may have: often 1,024 to begin."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def program(name: str) -> str:
    """The full path of a system program; ``/usr/sbin`` is searched for plain users too."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ServerError(f"{name} is not installed; ./tests/run installs it")
    return found


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return as soon as the condition holds; raise `TimeoutError` naming ``what`` if it never does.

    For states that nobody announces: a port that opens, a line in a log, a process that ends.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.01)


class Server:
    """A process with a port and a folder of its own; both survive a restart.

    Every method blocks; from a coroutine call ``await asyncio.to_thread(server.restart)``.
    """

    start_timeout = 20.0
    stop_timeout = 20.0

    def __init__(self) -> None:
        self.host = LOOPBACK
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="lab-")
        self.folder = Path(self._folder.name)
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    # What a kind of server tells of itself.

    def command(self) -> list[str]:
        """The command line of the process."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str] | None:
        """The process's environment; ``None`` inherits ours."""
        return None

    def answers(self) -> bool:
        """Whether the server would serve a client now; must not block for long."""
        return accepts_connections(self.host, self.port)

    # What a test does with it.

    def start(self) -> Self:
        """Start the process and return once it serves; `ServerError` if it does not."""
        self.spawn()
        self.wait_for(self.answers, "serving")
        return self

    def spawn(self) -> None:
        """Start the process without waiting for it to serve."""
        if self.running:
            raise ServerError(f"{type(self).__name__} is already running")
        self._process = _spawner.submit(self._popen).result()
        self._paused = False

    def stop(self) -> int:
        """Send SIGTERM and return the exit status; one that does not end is killed, and told."""
        process = self._required_process()
        self.resume()
        process.terminate()
        return self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the process has ended by itself."""
        process = self._required_process()
        try:
            return process.wait(self.stop_timeout if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"{type(self).__name__} did not end:\n{self.log_tail}") from None

    def kill(self) -> None:
        """Send SIGKILL to the process and to all it started, and wait until they are gone."""
        if self._process is not None:
            self._signal_group(signal.SIGKILL)
            self._process.wait()
            # Its children are not ours to wait for, and may take a moment longer.
            wait_until(lambda: not self.processes(), 5, "the end of its children")
        self._paused = False

    def restart(self) -> None:
        """Stop and start again: same port, same folder."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers."""
        self._signal_group(signal.SIGSTOP)
        self._paused = True
        # One of its threads spreads the word to the others, which answer until they hear of it.
        wait_until(lambda: all(_is_frozen(pid) for pid in self.processes()), 5, "its freeze")

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        if self._paused:
            self._signal_group(signal.SIGCONT)
            self._paused = False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, such as SIGHUP."""
        self._required_process().send_signal(number)

    def close(self) -> None:
        """Kill whatever still runs and remove the folder; may be called twice."""
        self.kill()
        self._folder.cleanup()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds; `ServerError` with the log's end if it never does."""
        try:
            wait_until(lambda: not self.running or condition(), self.start_timeout, what)
        except TimeoutError as late:
            raise ServerError(f"{type(self).__name__} {late}\n{self.log_tail}") from None
        if not self.running:
            status = self._required_process().returncode
            raise ServerError(
                f"{type(self).__name__} exited with {status} before {what}:\n{self.log_tail}"
            )

    def wait_for_line(self, text: str, timeout: float = 10.0) -> str:
        """Return the first whole line of the output that contains the text."""

        def found() -> list[str]:
            whole, _, _ = self.output.rpartition("\n")
            return [line for line in whole.splitlines() if text in line]

        try:
            wait_until(lambda: bool(found()), timeout, f"a line with {text!r}")
        except TimeoutError as late:
            raise ServerError(f"{type(self).__name__} {late}\n{self.log_tail}") from None
        return found()[0]

    # What a test may ask of it.

    @property
    def running(self) -> bool:
        """Whether the process is there (paused counts)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._required_process().pid

    @property
    def output(self) -> str:
        """All it wrote to stdout and stderr so far, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def log_tail(self) -> str:
        return "\n".join(self.output.splitlines()[-40:])

    def processes(self) -> list[int]:
        """The process ids alive in its group: the process itself and its workers."""
        return sorted(_group_members(self._process.pid)) if self._process else []

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process and its workers."""
        return sum(_resident_bytes(pid) for pid in self.processes())

    @property
    def open_files(self) -> int:
        """Open file descriptors of the process and its workers."""
        return sum(1 for pid in self.processes() for _ in Path(f"/proc/{pid}/fd").iterdir())

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _popen(self) -> subprocess.Popen[bytes]:
        # setpriv sets the parent-death signal and becomes the server: no Python runs
        # between fork and exec, which is unsafe in a process with threads.
        command = [program("setpriv"), "--pdeathsig", "KILL", "--", *self.command()]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
            )

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _required_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{type(self).__name__} was never started")
        return self._process


def accepts_connections(host: str, port: int) -> bool:
    """Whether a TCP connection can be opened."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _group_members(group: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # "pid (name) state parent group …"; the name may hold anything, ")" too.
                state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(member_of) == group and state != "Z":
                    yield int(entry.name)


def _is_frozen(pid: int) -> bool:
    with contextlib.suppress(OSError):
        states = [
            (thread / "stat").read_text().rpartition(")")[2].split()[0]
            for thread in Path(f"/proc/{pid}/task").iterdir()
        ]
        return all(state == "T" for state in states)
    return False


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
