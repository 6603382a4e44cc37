"""Profiles on disk: where they lie, which one counts, and what is refused.

The profile of a topology is found in the user's configuration folder, or given: as `cpu:8@my.json` in place of a
topology's name, by `--profile`, or by the environment variable PARALLELIZER_PROFILE (empty: none is used).
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cost_model.profile import Profile, ProfileError, calibrated, read_profile
from cost_model.topology import Topology
from parallelizer.errors import BadProfileError
from parallelizer.store import write_atomically

VARIABLE = "PARALLELIZER_PROFILE"


def profile_path(topology: Topology) -> Path:
    """Where the profile of a topology lies in the user's configuration folder."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "parallelizer"
    shared = f"-{topology.num_devices}" if topology.platform == "cpu" else ""
    return folder / f"{topology.chip.name}{shared}.json"


def save(profile: Profile, path: str | Path) -> None:
    """Write a profile, whole or not at all; its folder is made if it is not there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), profile.to_json())


def with_profile(topology: Topology, path: str | None = None) -> Topology:
    """The topology as it was measured: by the profile at `path`, that of PARALLELIZER_PROFILE, or the user's own.

    The variable and the user's own count where they are of the topology's chip; without one the topology is unchanged.
    Raises BadProfileError for a profile that cannot be used: unreadable, absurd, of another version, of other hardware.
    """
    variable = os.environ.get(VARIABLE)
    given = path or variable
    if not path and variable == "":
        return topology
    own = profile_path(topology)
    if not given and not own.is_file():
        return topology
    source = given or str(own)
    try:
        profile = read_profile(Path(source).read_text(encoding="utf-8"), source)
        here = hardware_of("cpu")
        if topology.platform == profile.chip == "cpu" and profile.hardware != here:
            raise ProfileError(source, f"it is of other hardware: measured on {profile.hardware}; this is {here}")
        return calibrated(topology, profile, source)
    except OSError as error:
        raise BadProfileError.of(source, f"the file cannot be read: {error.strerror}") from error
    except ProfileError as error:
        raise BadProfileError.of(source, error.why) from error


def hardware_of(kind_of_platform: str, device_kind: str = "") -> str:
    """What the machine is, so that a profile is not taken for that of another one."""
    if kind_of_platform != "cpu":
        return device_kind
    return f"{platform.machine()}, {os.cpu_count()} processors, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
