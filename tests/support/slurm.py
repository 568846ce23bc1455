"""A SLURM cluster of three nodes on this machine, with daemons of its own and without systemd."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
INSTALL = "apt-get install slurmctld slurmd slurm-client munge"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
HOST = socket.gethostname().partition(".")[0]
# Names that need no entry in /etc/hosts; process 0 of a run listens at the first.
NODES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
KILL_WAIT = 60  # Seconds from SIGTERM to SIGKILL.
TIMEOUT = 600  # Seconds; far less on an idle machine.

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait={kill_wait}
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=500
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=500
NodeName={nodes[2]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=1 RealMemory=500
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def reason_to_skip() -> str | None:
    """Returns why the cluster cannot run here, and what to install; None if it can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"{', '.join(missing)} missing: {INSTALL}"
    return "the daemons of SLURM need root" if os.geteuid() else None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(condition, timeout: float = TIMEOUT, *, describe=lambda: "") -> None:
    """Waits until a condition is true; fails with a description after the timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {describe()}"
        time.sleep(0.02)


def processes_with(**variables: str) -> list[int]:
    """Returns the ids of the processes whose environment has all of these values."""
    found = []
    wanted = [f"{name}={value}".encode() for name, value in variables.items()]
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            environment = path.read_bytes().split(b"\0")
            if all(each in environment for each in wanted):
                found.append(int(path.parent.name))
    return found


def parent_of(pid: int) -> int:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))


class Cluster:
    """The daemons of a cluster, and its commands."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        # Of tasks: libraries of this process may have set others.
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        values = {"host": HOST, "folder": self.folder, "ports": free_ports(4)}
        text = CONFIG.format(nodes=NODES, kill_wait=KILL_WAIT, **values)
        (self.folder / "slurm.conf").write_text(text)
        key, munge = self.folder / "munge.key", str(self.folder / "munge")
        self.run("mungekey", "--create", f"--keyfile={key}")
        self.run(
            *("munged", "--force", f"--key-file={key}", f"--socket={munge}.socket"),
            *(f"--pid-file={munge}.pid", f"--log-file={munge}.log", f"--seed-file={munge}.seed"),
        )
        self.run("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.idle_nodes() == 3, describe=self.logs)

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)

    def stop(self) -> None:
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munge"):
            self.kill_daemon(name, signal.SIGTERM)
        for pid in processes_with(SLURM_CONF=str(self.folder / "slurm.conf")):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def kill_daemon(self, name: str, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.folder / f"{name}.pid").read_text()), number)

    def kill_node(self, node: str) -> None:
        """Kills the daemon of a node and all processes of jobs on it, like a power cut."""
        self.kill_daemon(f"slurmd-{node}", signal.SIGKILL)
        tasks = processes_with(SLURMD_NODENAME=node, SLURM_CONF=self.environment["SLURM_CONF"])
        steps = {parent_of(pid) for pid in tasks} - set(tasks)
        for pid in [*(steps - {1, os.getpid()}), *tasks]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *command: str) -> str:
        """Runs a command of SLURM and returns its output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def idle_nodes(self) -> int:
        return self.run("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")

    def job(self, number: str) -> dict[str, str]:
        """Returns the fields of a job, such as JobState, Restarts and ExitCode."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_pending(self, number: str) -> None:
        """Starts a requeued job soon; SLURM would wait for two minutes."""

        def is_requeued():
            job = self.job(number)
            return job["JobState"] == "PENDING" and job["Restarts"] != "0"

        wait_until(is_requeued, describe=self.logs)
        time.sleep(3)  # The nodes reject credentials from the second in which the job was killed.
        self.run("scontrol", "update", f"jobid={number}", "starttime=now")

    def logs(self) -> str:
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in paths)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Context manager of a cluster, whose folder all daemons can enter."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
