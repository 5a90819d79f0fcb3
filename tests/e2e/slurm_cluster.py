"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, as children of the tests.

Nothing outside its own folder is read or written, and its programs find it by environment variables, so that it stands
beside whatever Slurm the machine may have.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.ranks import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=20
"""
_GRES = "NodeName=n[1-2] Name=gpu File=/dev/tty[0-1]\n"


@dataclass
class Cluster:
    """A cluster that is up.

    Attributes:
        folder: with its configuration, state and logs.
        environment: variables by which Slurm's commands find it.
        programs: started by tests, to be ended with the cluster: without it they would wait for their jobs for ever.
    """

    folder: Path
    environment: dict[str, str]
    programs: list[subprocess.Popen[str]] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, *command: str, check: bool = True) -> str:
        """The output of one of Slurm's commands."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job_id: str) -> str:
        """Slurm's state of a job, or "" if it knows none."""
        out = self.run("squeue", "-h", "-r", "-t", "all", "-j", job_id.split("_")[0], "-o", "%i|%T", check=False)
        return dict(line.split("|") for line in out.splitlines()).get(job_id, "")

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 60) -> None:
        """Until a job is in one of the states."""
        self.wait(lambda: self.state(job_id) in states, f"job {job_id} in {states}", timeout_s)

    def wait(self, condition, what: str, timeout_s: float = 60) -> None:
        """Until something is true."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}\n{self.run('squeue', '-t', 'all')}"
            time.sleep(0.1)

    def restart_now(self, job_id: str) -> None:
        """Starts a requeued job at once, which Slurm would hold for two minutes."""
        self.wait_for_state(job_id, "PENDING")
        time.sleep(1.1)  # nodes count in seconds, and refuse what starts in the one in which they ended the job

        def is_started() -> bool:
            self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now", check=False)  # too soon, and it fails
            return self.state(job_id) in ("RUNNING", *_TERMINAL)

        self.wait(is_started, f"job {job_id} to start again", 120)

    def logs(self) -> str:
        """The end of what the daemons logged."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


def missing_programs() -> list[str]:
    """Those of Slurm's programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Brings a cluster up, and takes it down with everything that runs on it."""
    # Not pytest's: a socket's path has room for about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder, {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH})
    try:
        _configure(folder)
        _start(cluster)
        yield cluster
        for program in cluster.programs:
            program.kill()
            program.wait()
        cluster.run("scancel", "--user", getpass.getuser(), check=False)
        # Daemons that end first would leave what a failing test left running.
        cluster.wait(lambda: not cluster.run("squeue", "-h").strip(), "an empty queue", 150)
    finally:
        for process in reversed(cluster._processes):
            process.send_signal(signal.SIGTERM)
        for process in cluster._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("munge", "state", "n1", "n2"):
        (folder / name).mkdir(mode=0o700)
    folder.chmod(0o755)  # munge wants its socket's folder reachable
    (folder / "munge").chmod(0o711)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    text = _CONF.format(folder=folder, host=host, user=getpass.getuser(), ports=_free_ports(3))
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(_GRES)


def _start(cluster: Cluster) -> None:
    munge = cluster.folder / "munge"
    socket_path = munge / "sock"
    _spawn(
        cluster,
        *("munged", "-F", "--force", f"--key-file={munge / 'key'}", f"--socket={socket_path}"),
        *(f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"),
    )
    cluster.wait(socket_path.exists, "munged", 100)
    _spawn(cluster, "slurmctld", "-D", "-i", "-f", str(cluster.folder / "slurm.conf"))
    for node in ("n1", "n2"):
        _spawn(cluster, "slurmd", "-D", "-N", node, "-f", str(cluster.folder / "slurm.conf"))

    def nodes_are_idle() -> bool:
        assert all(process.poll() is None for process in cluster._processes), cluster.logs()
        return cluster.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False).strip() == "2"

    cluster.wait(nodes_are_idle, "two idle nodes", 200)


def _spawn(cluster: Cluster, *command: str) -> None:
    environment = {**os.environ, **cluster.environment}
    log = (cluster.folder / f"{command[0]}.out").open("ab")
    with log:
        process = subprocess.Popen(
            [shutil.which(command[0], path=_PATH) or command[0], *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster._processes.append(process)


def _free_ports(number: int) -> list[int]:
    ports = set[int]()
    while len(ports) < number:
        ports.add(free_port())
    return list(ports)
