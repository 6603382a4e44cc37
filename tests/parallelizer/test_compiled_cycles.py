"""The compiler's own estimate of computing: per fusion, loops multiplied, products apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from parallelizer.aot import devices_for
from parallelizer.compiled.cycles import CLOCK_HZ, read_cycles

TEXT = """HloModule m, num_partitions=1
%inner (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} convolution(f32[8,8]{1,0} %p, f32[8,8]{1,0} %p), dim_labels=bf_io->bf
}
%plain (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %neg = f32[8,8]{1,0} negate(f32[8,8]{1,0} %q)
}
%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %s = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element((s32[], f32[8,8]) %s), index=0
  %x = f32[8,8]{1,0} get-tuple-element((s32[], f32[8,8]) %s), index=1
  %f = f32[8,8]{1,0} fusion(f32[8,8]{1,0} %x), kind=kOutput, calls=%inner, backend_config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[8,8]) tuple(s32[] %i, f32[8,8]{1,0} %f)
}
%condition (c: (s32[], f32[8,8])) -> pred[] {
  %c = (s32[], f32[8,8]) parameter(0)
  ROOT %less = pred[] constant(true)
}
ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %n = f32[8,8]{1,0} fusion(f32[8,8]{1,0} %a), kind=kLoop, calls=%plain, backend_config={"estimated_cycles":"7"}
  %z = s32[] constant(0)
  %init = (s32[], f32[8,8]) tuple(s32[] %z, f32[8,8]{1,0} %n)
  %w = (s32[], f32[8,8]) while((s32[], f32[8,8]) %init), condition=%condition, body=%body, backend_config={KNOWN}
  %out = f32[8,8]{1,0} get-tuple-element((s32[], f32[8,8]) %w), index=1
  ROOT %laid = f32[8,8]{0,1} copy(f32[8,8]{1,0} %out), backend_config={"estimated_cycles":"11"}
}
"""


def test_loops_multiply_and_products_are_apart() -> None:
    found = read_cycles(TEXT.replace("{KNOWN}", '{"known_trip_count":{"n":"5"}}'))
    assert (found.products, found.others, found.total, found.known) == (500, 18, 518, True)


def test_a_loop_of_unknown_length_counts_once_and_says_so() -> None:
    found = read_cycles(TEXT.replace(", backend_config={KNOWN}", ""))
    assert (found.products, found.others, found.known) == (100, 18, False)
    assert found.copies == 11


def _compiled(topology: str, run: Any, *shapes: tuple[int, ...]) -> str:
    sharding = SingleDeviceSharding(devices_for(topology)[0])
    args = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding) for s in shapes]
    return jax.jit(run).lower(*args).compile().as_text() or ""


def test_a_product_takes_about_as_long_as_its_peak_says() -> None:
    n = 2048
    found = read_cycles(_compiled("v5e:1x1", jnp.matmul, (n, n), (n, n)))
    seconds = found.total / CLOCK_HZ["v5e"]
    assert found.products > 0.9 * found.total
    assert 1.0 <= seconds / (2 * n**3 / 197e12) < 1.5


def test_a_compiled_loop() -> None:
    def run(times: int) -> Any:
        return lambda x, w: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=times)[0]

    once, often = (read_cycles(_compiled("v5e:1x1", run(n), (512, 512), (512, 512))).products for n in (3, 30))
    assert often == pytest.approx(10 * once)


def test_other_compilers_write_none() -> None:
    assert read_cycles(_compiled("cpu:1", jnp.matmul, (8, 8), (8, 8))).total == 0
    with pytest.raises(ValueError, match="ENTRY"):
        read_cycles("nothing")
