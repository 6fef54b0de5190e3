"""A real Slurm on this machine, for tests: munged, slurmctld and slurmds of Debian's packages, in a folder.

No systemd, no accounting, nothing outside the folder. ``apt-get install slurm-wlm munge`` brings what it
needs; it runs as root only (slurmd starts jobs as other users).
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")

CONFIG = """\
ClusterName=spear
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=20
MinJobAge=3600
MaxArraySize=21
SchedulerParameters=sched_interval=1,sched_min_interval=500000,bf_interval=1
PropagateResourceLimitsExcept=MEMLOCK
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str:
    """Why there can be no Slurm here; empty where there can."""
    lacking = [name for name in NEEDED if not _program(name)]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    return ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def patience(seconds: float) -> float:
    """A limit for what takes ``seconds`` on an idle machine: where processes wait for a CPU, so do jobs."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Slurm:
    """The cluster: nodes n1, n2, ... of ``cpus`` CPUs each (oversubscribed). Use it as a context."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4, proctrack: str = "linuxproc") -> None:
        self.folder, self.nodes = folder, [f"n{number}" for number in range(1, nodes + 1)]
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        host, ports = socket.gethostname().split(".")[0], _free_ports(1 + nodes)
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={cpus} RealMemory=8000 Gres=gpu:2"
            for name, port in zip(self.nodes, ports[1:])
        ]
        facts = {"names": ",".join(self.nodes), "nodes": "\n".join(lines)}
        text = CONFIG.format(host=host, ports=ports, folder=folder, proctrack=proctrack, **facts)
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        # Two GPUs of each node: any devices will do.
        gpus = [
            f"NodeName={','.join(self.nodes)} Name=gpu File={file}\n" for file in ("/dev/null", "/dev/zero")
        ]
        (folder / "gres.conf").write_text("".join(gpus), encoding="utf-8")
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Slurm":
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # munged refuses folders that others may write to, as /tmp: it runs with --force.
        options = [
            f"--socket={self.folder / 'munge.socket'}",
            f"--key-file={key}",
            f"--pid-file={munge / 'pid'}",
        ]
        options += [f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}", "--force", "--foreground"]
        self._start("munged", *options)
        self.wait(lambda: (self.folder / "munge.socket").exists(), 20, "munged")
        self._start("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self.wait(lambda: self.states().count("idle") == len(self.nodes), 60, "nodes")

    def __exit__(self, *_: object) -> None:
        self("scancel", "--full", *self._job_ids(), check=False)
        deadline = time.monotonic() + 30
        while self._job_ids() and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self._daemons.values()):
            if daemon.poll() is None:
                daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _job_ids(self) -> list[str]:
        return self("squeue", "--noheader", "--format=%A", check=False).split()

    def _start(self, name: str, *options: str, label: str = "") -> None:
        log = (self.folder / f"{label or name}.out").open("ab")
        self._daemons[label or name] = subprocess.Popen(
            [_program(name), *options],
            env=self.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, label=node)

    def kill_node(self, node: str) -> None:
        """The node is lost: its slurmd and all that it started, at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        # What it started has left its session, but not its environment.
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"SLURMD_NODENAME={node}".encode() in (process / "environ").read_bytes().split(b"\0")
                same = f"SLURM_CONF={self.folder}/slurm.conf".encode() in (process / "environ").read_bytes()
            except OSError:
                continue
            if mine and same:
                os.kill(int(process.name), signal.SIGKILL)

    def __call__(self, *command: str, check: bool = True, **options: object) -> str:
        """Standard output of a command of Slurm."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, **options
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def states(self) -> str:
        return self("sinfo", "--noheader", "--Node", "--format=%t", check=False)

    def job(self, job_id: str) -> dict[str, str]:
        """What scontrol says of a job (of all tasks of an array together, the last one wins)."""
        return dict(re.findall(r"(\w+)=(\S*)", self("scontrol", "--oneliner", "show", "job", job_id)))

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def start_now(self, job_id: str) -> None:
        """A requeued job waits for 120 s otherwise. (In the second in which it was requeued its credential is
        not valid.)"""
        time.sleep(2.5)
        self("scontrol", "update", f"JobId={job_id}", "StartTime=now", check=False)

    def finish(self, job_id: str, seconds: float = 300) -> str:
        """The state in which the job ends, however often it is requeued."""

        def ended() -> bool:
            state = self.state(job_id)
            if state == "PENDING":
                self.start_now(job_id)
            return state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")

        self.wait(ended, seconds, f"end of job {job_id}")
        return self.state(job_id)

    @staticmethod
    def wait(condition, seconds: float, what: str) -> None:
        """``seconds``: on a machine with nothing else to do."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > patience(seconds):
                raise TimeoutError(f"no {what} after {time.monotonic() - began:.0f} s")
            time.sleep(0.25)
