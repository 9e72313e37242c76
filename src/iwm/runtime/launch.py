"""Which of several processes this one is: started by `python`, by `torchrun` or by SLURM's `srun`.

    torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    srun       SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID; they meet at the first host of SLURM_STEP_NODELIST
    python     neither; also inside an allocation, where srun's variables of the step are absent

Nothing here imports PyTorch: every verb asks it before its work is imported.
"""

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iwm.runtime.errors import UserError

TORCHRUN, SRUN, PYTHON = "torchrun", "srun", "python"
"""What starts processes."""
FIRST_PORT, PORTS = 20000, 20000
"""Where ranks that srun started meet, by the number of their job."""


@dataclass(frozen=True)
class Place:
    """One process among those that do a piece of work together."""

    launcher: str = PYTHON
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of its machine."""
    local_size: int = 1
    address: str = ""
    """Host of rank 0, where all meet."""
    port: int = 0
    attempt: str = "0"
    """Tells the starts of one torchrun apart."""
    hosts_store: bool = True
    """Whether rank 0 opens the meeting place; torchrun often has opened it already."""

    @property
    def name(self) -> str:
        """The rank as sentences name it."""
        return f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})"


def place(variables: Mapping[str, str] | None = None) -> Place:
    """The place of this process, by its environment. Raises UserError when that is contradictory."""
    environment = os.environ if variables is None else variables
    if environment.get("WORLD_SIZE", "").strip() not in ("", "0", "1"):
        return _of_torchrun(environment)
    step = environment.get("SLURM_STEP_NUM_TASKS", "").strip()
    if step not in ("", "0", "1") and "SLURM_PROCID" in environment and "WORLD_SIZE" not in environment:
        return _of_srun(environment)
    return Place()


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A whole number of the environment. Raises UserError where it is missing or none."""
    text = environment.get(name, "" if default is None else str(default)).strip()
    if not text.isdigit():
        said = f"is {text!r}" if text else "is not set"
        raise UserError(f"{name} {said}; start several processes with torchrun or srun, or unset WORLD_SIZE.")
    return int(text)


def _checked(place: Place) -> Place:
    if place.rank >= place.size:
        raise UserError(f"This process is rank {place.rank} of {place.size}; start it with torchrun or srun.")
    return place


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    return _checked(
        Place(
            TORCHRUN,
            _number(environment, "RANK"),
            _number(environment, "WORLD_SIZE"),
            _number(environment, "LOCAL_RANK", 0),
            _number(environment, "LOCAL_WORLD_SIZE", 1),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            _number(environment, "MASTER_PORT", FIRST_PORT),
            environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            environment.get("TORCHELASTIC_USE_AGENT_STORE", "") != "True",
        )
    )


def _of_srun(environment: Mapping[str, str]) -> Place:
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    job, step = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return _checked(
        Place(
            SRUN,
            _number(environment, "SLURM_PROCID"),
            _number(environment, "SLURM_STEP_NUM_TASKS"),
            _number(environment, "SLURM_LOCALID", 0),
            int(tasks[0]) if tasks else 1,
            environment.get("MASTER_ADDR", first_host(hosts)),
            _number(environment, "MASTER_PORT", FIRST_PORT + (job + 101 * step) % PORTS),
            environment.get("SLURM_RESTART_COUNT", "0"),
        )
    )


def first_host(hosts: str) -> str:
    """The first of SLURM's list of hosts: "gpu[03-05,9],cpu1" begins with gpu03."""
    match = re.match(r"([^\[,]+)(?:\[([^\]-]+?)[,\-\]])?", hosts)
    if not match:
        return "127.0.0.1"
    return match[1] + (match[2] or "")


def address_of(host: str) -> str:
    """The IPv4 address that this machine has for a host; "" where it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def is_loopback(address: str) -> bool:
    """Whether a machine reaches itself alone there."""
    return not address or address.startswith("127.")


def reachable(own: str, of_all: Sequence[str]) -> str:
    """Rank 0's address, by which all hosts reach it: as this host has it, `own`, unless that leads to itself alone, as
    rank 0's host often has 127.0.1.1 for its own name; then as another has it. `own` where there is no other host."""
    others = [address for address in of_all if not is_loopback(address)]
    return others[0] if others and is_loopback(own) else own


def interface_to(address: str) -> str:
    """The name of the network interface by which the address is reached; "" for this machine itself, and where the
    system does not say."""
    if sys.platform != "linux":
        return ""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing
        except OSError:
            return ""
        own = probe.getsockname()[0]
        for _, name in () if is_loopback(own) else socket.if_nameindex():
            try:
                # SIOCGIFADDR of linux/sockios.h; a `struct sockaddr_in` comes after the 16 bytes of the name.
                reply = fcntl.ioctl(probe, 0x8915, name.encode()[:15].ljust(256, b"\0"))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(reply[20:24]) == own:
                return name
    return ""


def require_one_process(verb: str) -> None:
    """Raises UserError where several processes were started to do a verb that one process does."""
    where = place()
    if where.size > 1:
        raise UserError(
            f"iwm {verb} is the work of one process, and {where.launcher} started {where.size}, which would all do the "
            f"same; start it without {where.launcher}."
        )
