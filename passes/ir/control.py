"""How the bodies of a loop or branch are tied to its operands and results, whatever the primitive."""

from __future__ import annotations

from dataclasses import dataclass

from passes.ir.graph import Op, Operand


@dataclass(frozen=True, slots=True)
class Carry:
    """A value handed from iteration to iteration: it enters as operand number `operand`, is called `inside` in each
    region that reads it, an iteration hands on `after`, and the loop leaves it as `result`."""

    operand: int
    inside: tuple[int, ...]
    after: Operand
    result: int


@dataclass(frozen=True, slots=True)
class Control:
    """What enters and leaves the regions of an operation.

    passed: (operand number, value inside) of what every iteration, or a branch, reads as it is. slices: (operand
    number, value inside) of stacked operands of which an iteration reads its part. stacks: (what an iteration yields,
    the stacked result). merges: (what each branch yields, the result). tests: what decides how it goes on, which every
    device must know alike.
    """

    passed: tuple[tuple[int, int], ...] = ()
    carries: tuple[Carry, ...] = ()
    slices: tuple[tuple[int, int], ...] = ()
    stacks: tuple[tuple[Operand, int], ...] = ()
    merges: tuple[tuple[tuple[Operand, ...], int], ...] = ()
    tests: tuple[Operand, ...] = ()


def has_control(op: Op) -> bool:
    """Whether the operation runs regions (a loop or a branch)."""
    return bool(op.regions) and op.primitive in ("scan", "while", "cond")


def control_of(op: Op) -> Control:
    """The ties of a `scan`, `while` or `cond`. ValueError for any other operation."""
    if not has_control(op):
        raise ValueError(f"op {op.id} {op.primitive} runs no regions")
    if op.primitive == "scan":
        return _scan(op)
    return _while(op) if op.primitive == "while" else _cond(op)


def _scan(op: Op) -> Control:
    (body,) = op.regions
    n, m = int(op.params["num_consts"]), int(op.params["num_carry"])
    ties = list(enumerate(body.inputs))
    return Control(
        passed=tuple(ties[:n]),
        carries=tuple(
            Carry(n + k, (body.inputs[n + k],), after, result)
            for k, (after, result) in enumerate(zip(body.outputs[:m], op.outputs[:m], strict=True))
        ),
        slices=tuple(ties[n + m :]),
        stacks=tuple(zip(body.outputs[m:], op.outputs[m:], strict=True)),
    )


def _while(op: Op) -> Control:
    test, body = op.regions
    n, m = int(op.params["cond_nconsts"]), int(op.params["body_nconsts"])
    return Control(
        passed=(*enumerate(test.inputs[:n]), *enumerate(body.inputs[:m], start=n)),
        carries=tuple(
            Carry(n + m + k, (test.inputs[n + k], body.inputs[m + k]), after, result)
            for k, (after, result) in enumerate(zip(body.outputs, op.outputs, strict=True))
        ),
        tests=test.outputs,
    )


def _cond(op: Op) -> Control:
    """Operand 0 says which branch runs; the others enter every branch."""
    return Control(
        passed=tuple((i, b) for region in op.regions for i, b in enumerate(region.inputs, start=1)),
        merges=tuple(
            (tuple(region.outputs[k] for region in op.regions), result) for k, result in enumerate(op.outputs)
        ),
        tests=op.inputs[:1],
    )
