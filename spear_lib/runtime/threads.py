"""How many threads a process computes with: what is free on the machine when it starts (ours).

Threads of one operation wait for each other, so one thread too many for the free cores costs more than it
brings: two threads beside a busy neighbour were ten times slower than one. Only what the process may use is
counted (affinity, quota of its cgroup), of two hyper-threads one, and what others keep busy is left to them.
OMP_NUM_THREADS wins over all of it.

Shells ask once, at the start of a script, so that a recipe's own work is no load to its next stage:

    eval "$(python spear_lib/runtime/threads.py 2)"    # two processes share the machine
"""

import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_CHOSEN = "SPEAR_THREADS"
"""Set beside OMP_NUM_THREADS by whoever chose it here: "2 (2 cores to run on)", for the first screens."""


@dataclass(frozen=True)
class CpuFacts:
    """What a machine lets this process have."""

    cpus: int
    """Hardware threads of the machine that are switched on."""
    cores: int
    """Physical cores among those that the process may run on (affinity)."""
    quota: float | None = None
    """Limit of the cgroup in CPUs, None without one."""
    load: float = 0.0
    """Load average of the last minute, of the whole machine."""


class Threads(NamedTuple):
    """A number of threads and the reason for it."""

    number: int
    why: str


def choose(facts: CpuFacts, processes: int = 1, given: str | None = None) -> Threads:
    """Threads of one process.

    Args:
      facts: of the machine.
      processes: of this run on this machine; they share what is free.
      given: OMP_NUM_THREADS (also "4,2": of nested levels the first counts).

    Raises:
      ValueError: ``given`` is no whole number of at least 1.
    """
    if given:
        first = given.split(",")[0].strip()
        if not first.isdecimal() or int(first) < 1:
            raise ValueError(f"OMP_NUM_THREADS is {given!r}: use a whole number of at least 1, or unset it")
        return Threads(int(first), "OMP_NUM_THREADS")
    limits = [(facts.cores, f"{_counted(facts.cores, 'core')} to run on")]
    if facts.quota is not None:
        limits.append((int(facts.quota), f"quota of {facts.quota:g} CPUs"))
    limits.append((int(facts.cpus - facts.load + 0.5), f"load {facts.load:.1f} on {facts.cpus} CPUs"))
    number, why = min(limits, key=lambda limit: limit[0])
    if processes > 1:
        why += f", shared by {processes} processes"
    return Threads(max(1, number // processes), why)


def chosen() -> dict[str, str]:
    """The environment of the choice for this process and what it starts; empty where OMP_NUM_THREADS is set.

    The processes of torchrun share the machine (LOCAL_WORLD_SIZE). Where nobody set OMP_NUM_THREADS torchrun
    gives each of them 1, so that there is nothing left to choose.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return {}
    threads = choose(read_facts(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return {"OMP_NUM_THREADS": str(threads.number), _CHOSEN: f"{threads.number} ({threads.why})"}


def use_threads() -> None:
    """Choose, where nobody has, and tell torch.

    Raises:
      ValueError: OMP_NUM_THREADS is no number.
    """
    import torch

    os.environ.update(chosen())
    number = choose(CpuFacts(1, 1), given=os.environ["OMP_NUM_THREADS"]).number
    torch.set_num_threads(number)
    if torch.get_num_interop_threads() != number:
        with suppress(
            RuntimeError
        ):  # its pool is at work already: only the first command of a process chooses
            torch.set_num_interop_threads(number)


def described() -> str:
    """The line of the first screen: how many threads torch computes with, and why."""
    import torch

    number, line = torch.get_num_threads(), os.environ.get(_CHOSEN, "")
    if line.startswith(f"{number} ("):
        return f"{line}; sums differ in the last digits between thread counts, OMP_NUM_THREADS=1 fixes them"
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0] == str(number)
    return f"{number} ({'OMP_NUM_THREADS' if given else 'set by this command'})"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def read_facts() -> CpuFacts:
    """The facts of this machine; what a system does not tell limits nothing."""
    cpus = os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(cpus))
    return CpuFacts(
        cpus=cpus,
        cores=physical_cores(allowed, Path("/sys/devices/system/cpu")),
        quota=cgroup_quota(_text(Path("/proc/self/cgroup")), Path("/sys/fs/cgroup")),
        load=os.getloadavg()[0],
    )


def physical_cores(allowed: set[int], folder: Path) -> int:
    """Physical cores among the CPUs ``allowed``; CPUs of one core name the same siblings (``folder``)."""
    siblings = (_text(folder / f"cpu{cpu}" / "topology" / "thread_siblings_list") for cpu in allowed)
    return max(1, len({names or str(cpu) for cpu, names in zip(allowed, siblings)}))


def cgroup_quota(membership: str, root: Path) -> float | None:
    """The smallest CPU limit of the cgroups that a process is in, None without a limit.

    Args:
      membership: /proc/self/cgroup: lines of "number:controllers:path".
      root: where the cgroups are mounted. In a container the path may be the host's; then the root counts.
    """
    limits = []
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            mount, read = root / "cpu", _quota_v1
        elif number == "0":
            mount, read = root, _quota_v2
        else:
            continue
        folder = mount / path.lstrip("/")
        # A group has at most what those above it have.
        for each in (folder, *folder.parents):
            limits.append(read(each))
            if each == mount:
                break
    return min((limit for limit in limits if limit is not None), default=None)


def _quota_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota and quota != "max" else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def main(argv: list[str] | None = None) -> None:
    """Prints what a shell sets: nothing where OMP_NUM_THREADS is set."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments:
        os.environ["LOCAL_WORLD_SIZE"] = arguments[0]
    for name, value in chosen().items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
