"""Plans as files: JSON with a format number and a checksum, written whole or not at all.

A file holds everything that was decided and reported, and nothing that only this process has (the traced function, the
search's tables, devices). `load_plan` gives a plan that reads and compares like any other; `apply` and `compile` bring
it together with its function and refuse another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cost_model.hardware import UnknownChip
from cost_model.mesh import LogicalMesh, Piece
from cost_model.topology import ImpossibleTopology, Topology, UnknownTopology, parse_topology
from parallelizer.dims import dims_of
from parallelizer.errors import PlanFileError
from parallelizer.plans import Plan
from parallelizer.store_codec import BadData, Reader, Writer

FORMAT = 1
_KIND = "parallelizer plan"
# What only the process that made the plan has, and what this file writes in a way of its own.
_LIVE = ("traced", "graph", "live", "devices")
_OWN = (*_LIVE, "mesh", "options")
_WIDTH = 120


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write `plan` to `path`. OSError if that cannot be done; an older file is then still whole."""
    write_atomically(path, pretty(to_dict(plan)) + "\n")


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan. Raises PlanFileError, which says what is wrong with the file."""
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise PlanFileError.of(name, error.strerror or type(error).__name__) from error
    except UnicodeDecodeError as error:
        raise PlanFileError.of(name, "not JSON", "it is not text") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}: {error.msg}"
        whole = text.strip()
        cut = whole.startswith("{") and not whole.endswith("}")
        raise PlanFileError.of(name, "it is truncated" if cut else "not JSON", at) from error
    except RecursionError as error:
        raise PlanFileError.of(name, "not a plan", "it is nested too deeply") from error
    return from_dict(data, name)


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready data with its format and checksum."""
    writer = Writer()
    body = writer.record(replace(plan, dims=dims_of(plan)), without=_OWN)
    long = {name: body.pop(name) for name in ("inputs", "outputs", "collectives", "choices", "layout")}
    out = {
        "kind": _KIND,
        "format": FORMAT,
        "checksum": "",
        **body,
        "mesh": _mesh_out(plan.mesh, writer),
        "options": {k: _listed(v) for k, v in plan.options.items()},
        "shardings": writer.table,
        **long,
    }
    out["checksum"] = checksum(out)
    return out


def from_dict(data: Any, path: str = "the data") -> Plan:
    """The plan of `to_dict`. Raises PlanFileError; `path` names the file in its message."""
    if not isinstance(data, dict) or data.get("kind") != _KIND:
        raise PlanFileError.of(path, "not a plan", f'a plan is a JSON object with "kind": "{_KIND}"')
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        made_by = data.get("versions")
        newer = (
            f"written by version {made_by['parallelizer']}"
            if isinstance(made_by, dict) and "parallelizer" in made_by
            else ""
        )
        raise PlanFileError.of(
            path, f"format {version} is newer than {FORMAT}, the newest that this version reads", newer
        )
    if version != FORMAT:
        raise PlanFileError.of(path, f"format {version!r} is unknown", f"this version reads format {FORMAT}")
    found = checksum(data)
    if found != data.get("checksum"):
        raise PlanFileError.of(
            path, "checksum differs", f"written {data.get('checksum')}, found {found}: the file was changed or damaged"
        )
    try:
        return _plan_in({k: v for k, v in data.items() if k not in ("kind", "format", "checksum")})
    except BadData as error:
        raise PlanFileError.of(path, "wrong content", f"at {error.where}: {error.reason}") from error


def checksum(data: Mapping[str, Any]) -> str:
    """sha256 of the data without its checksum, whatever the order of keys and the spacing."""
    rest = {k: v for k, v in data.items() if k != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plan_in(data: dict[str, Any]) -> Plan:
    if "shardings" not in data or "mesh" not in data:
        raise BadData("plan", f"the field {'mesh' if 'shardings' in data else 'shardings'!r} is missing")
    reader = Reader(data.pop("shardings"))
    mesh = _mesh_in(data.pop("mesh"), reader)
    options = data.pop("options", {})
    if not isinstance(options, dict):
        raise BadData("options", "an object is expected")
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    for i, sharding in enumerate(reader.table):
        unknown = sorted({*sharding.axes, *sharding.partial} - set(mesh.axis_names))
        if unknown:
            raise BadData(f"shardings/{i}", f"the mesh has no axis {unknown[0]!r}")
    return Plan(**reader.values(Plan, data, "plan", without=_OWN), mesh=mesh, options=kept)


def _listed(value: Any) -> Any:
    """Option values as JSON has them; a number or name alone stays alone."""
    return value if isinstance(value, int | str | dict) else list(value)


def _mesh_out(mesh: LogicalMesh, writer: Writer) -> dict[str, Any]:
    return {
        "topology": mesh.topology.name if _has_name(mesh.topology) else writer.write(mesh.topology),
        "axis_names": list(mesh.axis_names),
        "axis_sizes": list(mesh.axis_sizes),
        "device_order": list(mesh.device_order),
        "pieces": writer.write(mesh.pieces),
    }


def _has_name(topology: Topology) -> bool:
    """Whether its name says all about a topology, here and elsewhere (a user's file may lie elsewhere)."""
    if topology.name.endswith(".toml"):
        return False
    try:
        return parse_topology(topology.name) == topology
    except (UnknownTopology, ImpossibleTopology, UnknownChip):
        return False


def _mesh_in(data: Any, reader: Reader) -> LogicalMesh:
    wanted = {"topology", "axis_names", "axis_sizes", "device_order", "pieces"}
    if not isinstance(data, dict) or set(data) != wanted:
        raise BadData("mesh", f"it has {', '.join(sorted(wanted))}")
    if isinstance(data["topology"], str):
        try:
            topology = parse_topology(data["topology"])
        except (UnknownTopology, ImpossibleTopology, UnknownChip) as error:
            raise BadData("mesh/topology", str(error)) from error
    else:
        topology = reader.read(Topology, data["topology"], "mesh/topology")
    mesh = LogicalMesh(
        topology,
        reader.read(tuple[str, ...], data["axis_names"], "mesh/axis_names"),
        reader.read(tuple[int, ...], data["axis_sizes"], "mesh/axis_sizes"),
        reader.read(tuple[int, ...], data["device_order"], "mesh/device_order"),
        reader.read(tuple[tuple[Piece, ...], ...], data["pieces"], "mesh/pieces"),
    )
    if not len(mesh.axis_names) == len(mesh.axis_sizes) == len(mesh.pieces):
        raise BadData("mesh", "names, sizes and pieces of axes are not equally many")
    if sorted(mesh.device_order) != list(range(topology.num_devices)):
        raise BadData("mesh/device_order", f"it is no order of {topology.num_devices} devices")
    return mesh


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `path` so that a reader sees the old file or the new one, never a part.

    A temporary file beside it is written, flushed to the disk and renamed. OSError if that fails; nothing stays behind.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # who may read the old file may read the new one
            os.chmod(temporary, os.stat(target).st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def pretty(data: Any) -> str:
    """JSON for people: what fits into a line is one line, lists of numbers fill lines."""
    return "\n".join(_lines(data, 0, "", ""))


def _lines(data: Any, depth: int, before: str, after: str) -> Iterator[str]:
    pad = " " * depth
    short = pad + before + json.dumps(data, ensure_ascii=False) + after
    if len(short) <= _WIDTH or not isinstance(data, dict | list) or not data:
        yield short
        return
    table = data if isinstance(data, dict) else None
    yield pad + before + ("[" if table is None else "{")
    children = data if table is None else list(table.values())
    names = [""] * len(data) if table is None else [json.dumps(str(k), ensure_ascii=False) + ": " for k in table]
    if not any(isinstance(c, dict | list) for c in children):
        parts = [n + json.dumps(c, ensure_ascii=False) for n, c in zip(names, children, strict=True)]
        yield from _filled(parts, depth + 1)
    else:
        for i, (name, child) in enumerate(zip(names, children, strict=True)):
            yield from _lines(child, depth + 1, name, "," if i + 1 < len(children) else "")
    yield pad + ("]" if table is None else "}") + after


def _filled(parts: list[str], depth: int) -> Iterator[str]:
    line = ""
    for i, part in enumerate(parts):
        part += "," if i + 1 < len(parts) else ""
        if line and depth + len(line) + 1 + len(part) > _WIDTH:
            yield " " * depth + line
            line = part
        else:
            line = f"{line} {part}" if line else part
    yield " " * depth + line
