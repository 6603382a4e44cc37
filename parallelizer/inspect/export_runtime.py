"""The part of an exported module that is the same in each: mesh, shardings by path, and the functions that use them."""

from __future__ import annotations

HEAD = """
import base64
import math
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
"""

MESH = '''
def make_mesh(devices=None):
    """The plan's mesh on the devices given, by default all: the order is the plan's, which knows what is near what."""
    devices = sorted(jax.devices() if devices is None else devices, key=place_of)
    if len(devices) != len(DEVICE_ORDER):
        raise ValueError(f"the plan is for {len(DEVICE_ORDER)} devices, not {len(devices)}")
    placed = np.empty(len(devices), dtype=object)
    placed[:] = [devices[i] for i in DEVICE_ORDER]
    shape = tuple(AXES.values())
    return Mesh(placed.reshape(shape), tuple(AXES), axis_types=(AxisType.Auto,) * len(shape))
'''

# Where a device stands in the machine, by platform: the order that the plan's numbers count in.
PLACES = {
    "tpu": '''
def place_of(device):
    """Slice by slice, then along the torus."""
    return (getattr(device, "slice_index", 0) or 0, *device.coords[:TORUS_RANK], getattr(device, "core_on_chip", 0))
''',
    "gpu": '''
def place_of(device):
    """Node by node."""
    return device.process_index, device.id
''',
    "cpu": """
def place_of(device):
    return device.id
""",
}

TREES = '''
def paths_of(tree):
    """The path of every leaf, as in the tables above."""

    def word(key):
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                return str(getattr(key, attribute))
        return str(key).strip(".[]'\\"")

    return ["/".join(word(k) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def row_of(table, path):
    """The row for a path: its own, or the one of its layer."""
    for row in table:
        if row[0] == path or ("*" in row[0] and re.fullmatch(re.escape(row[0]).replace(r"\\*", r"\\d+"), path)):
            return row
    raise ValueError(f"the plan has no {path}")


def in_shardings(mesh, *args):
    """The shardings of the arguments, in their structure. ValueError for other arguments than the planned ones."""
    if len(args) != len(NAMES):
        raise ValueError(f"the arguments are {', '.join(NAMES)}, not {len(args)}")
    out = []
    for name, tree in zip(NAMES, args):
        leaves, structure = jax.tree.flatten(tree)
        shardings = []
        for path, leaf in zip(paths_of(tree), leaves):
            path = f"{name}/{path}" if path else name
            _, shape, dtype, spec = row_of(ARGUMENTS, path)
            if hasattr(leaf, "dtype") and (leaf.shape, leaf.dtype.name) != (shape, dtype):
                raise ValueError(f"{path} was planned as {dtype}{list(shape)} and is {leaf.dtype}{list(leaf.shape)}")
            shardings.append(NamedSharding(mesh, spec))
        out.append(jax.tree.unflatten(structure, shardings))
    return tuple(out)


def out_shardings(mesh, result):
    """The shardings of the result, in the structure of `result` (arrays or shapes)."""

    def row(path):
        for beginning, name in SAME_AS.items():
            if path == beginning or path.startswith(beginning + "/" if beginning else ""):
                rest = path.removeprefix(beginning).removeprefix("/")
                return row_of(ARGUMENTS, f"{name}/{rest}" if rest else name)
        return row_of(RESULTS, path)

    specs = [row(path or "result")[3] for path in paths_of(result)]
    return like(result, [NamedSharding(mesh, spec) for spec in specs])


def shard(mesh, *args):
    """The arguments, put where the plan wants them (a list of one for each)."""
    return [jax.device_put(a, s) for a, s in zip(args, in_shardings(mesh, *args))]


def like(tree, leaves):
    """`leaves` in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
'''

SHARDED_STEP = '''
def sharded_step(fn, mesh, {names}):
    """Your own `{function}`, its arguments and results cut as planned; what happens in between is XLA's choice.

    The arguments may be arrays or shapes.{static}
    """
    shape = jax.eval_shape({call}, {names})
    return jax.jit(
        {call},
        in_shardings=in_shardings(mesh, {names}),
        out_shardings=out_shardings(mesh, shape),
        donate_argnums=DONATED,
    )
'''

PLANNED_STEP = '''
def planned_step(mesh, {names}{extra}):
    """The whole step as planned: the shardings and collectives of every operation are written out in `program`.

    The arguments, here and of the result, are {names}; here they may be shapes.{result_doc}
    """
    arguments = in_shardings(mesh, {names})
    results = {shardings}

    def {function}({names}):
        leaves = program(mesh, *jax.tree.leaves(({tuple})))
        return {result}

    return jax.jit({function}, in_shardings=arguments, out_shardings=results, donate_argnums=DONATED)
'''

HELPERS = '''
def cut(mesh, x, spec):
    """Fix how an array is cut at this point."""
    return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def local(mesh, body, in_specs, out_specs):
    """`body` on the blocks of each device: nothing is left to the compiler inside, collectives are written out."""
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
'''

UNPACK = '''
def unpack(dtype, shape, text):
    """An array that the planned function closed over."""
    return np.frombuffer(zlib.decompress(base64.b85decode("".join(text))), np.dtype(dtype)).reshape(shape)
'''
