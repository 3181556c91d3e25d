"""Kernels of jobs and lessons: this very Python, listening on files and not on ports.

The runs of a local sweep share their imports: their kernels come from a forkserver of the
standard library that has imported what their notebook does. That saves a third of the time
of short runs. Nothing else is shared: the forkserver holds no file, lock or data of a run.
"""

import atexit
import contextlib
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from rvtutorial.core.files import TooLittle, addresses_gb, need_addresses

SOCKET_LIMIT = 107  # bytes of a Unix socket's path


def _socket_folder() -> Path:  # A new, private folder
    "Make a folder whose name is short enough for a kernel's sockets."
    tried = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    for base in tried:
        if len(os.fsencode(base)) + 30 <= SOCKET_LIMIT and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="rvt-", dir=base))
    raise OSError(
        f"no writable temporary folder with a short name; tried {', '.join(tried)}. "
        f"A kernel's socket path may have {SOCKET_LIMIT} bytes: set TMPDIR"
    )


LEAST_FILES, WANTED_FILES = 256, 1024  # open files that a kernel needs, and is given


def _quiet() -> dict:
    "Variables that keep a debugger and progress bars from complaining."
    told, hint = os.environ.get("PYTHONWARNINGS", ""), "ignore:IProgress not found"
    told = told if hint in told else ",".join(filter(None, [told, hint]))
    return {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONWARNINGS": told}


# --- kernels from a forkserver

_CONTEXT = multiprocessing.get_context("forkserver")
_KERNELS = ["ipykernel.kernelapp", "matplotlib_inline.backend_inline"]
_shared: list[str] = []  # What kernels share


def share_imports(
    modules: list[str],  # Without effects when they are imported, other than time
) -> None:
    "From now on, start kernels of this process from one that has imported some modules."
    _shared[:] = [*_KERNELS, *modules]
    _CONTEXT.set_forkserver_preload(_shared)
    # asked for only once, on import: where figures go, and what not to warn of
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ |= _quiet()


class _ForkedKernel(_CONTEXT.Process):
    "A kernel from the forkserver, with the methods of a Popen."

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        "Exit code, minus the signal's number, or None while it lives."
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        "Exit code, once there is one; raises `subprocess.TimeoutExpired`."
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(self.name, timeout)
        return self.exitcode

    def send_signal(self, number: int) -> None:
        "Send a signal while it lives."
        if self.exitcode is None:
            os.kill(self.pid, number)


def _provisioner() -> dict:  # Metadata of a kernel's specification
    "How jupyter_client gets a kernel that shares imports; empty for one that starts anew."
    if not _shared:
        return {}
    from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

    class Forking(LocalProvisioner):
        async def launch_kernel(self, cmd, **given):
            peak = _CONTEXT.RawValue("q", 0)
            env, folder = given.get("env") or {**os.environ}, given.get("cwd")
            order = (cmd[3:], env, str(folder or os.getcwd()), peak)
            self.process = _ForkedKernel(target=_run_kernel, args=order)
            self.process.start()
            self.process.peak = peak
            self.pid = self.pgid = self.process.pid  # it leads a session
            return self.connection_info

    found = SimpleNamespace(load=lambda: Forking)  # as an entry point would
    KernelProvisionerFactory.instance().provisioners["rvtutorial"] = found
    return {"kernel_provisioner": {"provisioner_name": "rvtutorial"}}


def _run_kernel(argv: list[str], env: dict, folder: str, peak) -> None:
    "What a copy of the forkserver does: become IPython's kernel until it is shut down."
    os.setsid()
    os.chdir(folder)
    with open("job.log", "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = argv
    if "numpy" in sys.modules:  # else all copies draw the same numbers
        sys.modules["numpy"].random.seed()
    threading.Thread(target=_follow, args=[peak], daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance()
    app.initialize([*argv, "--IPKernelApp.parent_handle=0"])  # `_follow` does that
    try:
        app.start()
    finally:
        # a process of multiprocessing's does not run them, a kernel that starts anew does
        atexit._run_exitfuncs()  # noqa: SLF001


def _follow(peak) -> None:
    "Note the peak of memory once a second; end when the process that runs the job is gone."
    parent = multiprocessing.parent_process()
    while parent.is_alive():
        kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        peak.value = max(resource.getrusage(kind).ru_maxrss for kind in kinds)
        parent.join(1)
    os._exit(1)  # at once, whatever a cell does


# --- how a kernel is started


@contextlib.contextmanager
def own_kernel(
    env: dict | None = None,  # More variables
) -> Iterator[tuple[dict, dict]]:  # Arguments for nbclient's client; its environment
    """How a kernel is started: by this very Python, listening on files, not on ports.

    Its environment is this process's without what belongs to another kernel or to the
    user's IPython. Raises `TooLittle` where the limits of this process are too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < LEAST_FILES:  # a kernel would fail or spin without a word
        raise TooLittle(
            f"a process may have {most} files open here (ulimit -Hn), and a kernel needs "
            f"{LEAST_FILES}: raise that limit, or ask the site to"
        )
    need_addresses()
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from traitlets.config import Config

    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    argv += ["--log-level=CRITICAL"]  # it calls each interrupt an error

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self):
            names = dict(display_name="python3", language="python")
            return KernelSpec(argv=argv, metadata=_provisioner(), **names)

    sockets = _socket_folder()
    drop = ("MPLBACKEND", "JPY_", "PYTHONSTARTUP")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    kept |= _quiet() | {"IPYTHONDIR": str(sockets / "ipython")}
    where = {"transport": "ipc", "connection_file": str(sockets / "k.json")}
    options = dict(
        kernel_name="python3",
        kernel_manager_class=OwnKernel,
        config=Config({"KernelManager": where}),
        startup_timeout=120,
        timeout=None,
        ipython_hist_file=":memory:",
    )
    try:
        yield options, kept | (env or {})
    finally:
        for child in multiprocessing.active_children():
            if isinstance(child, _ForkedKernel):  # stopped before nbclient knew of it
                child.kill()  # else Python waits for it at its end, and it for Python
                child.join()
        shutil.rmtree(sockets, ignore_errors=True)
