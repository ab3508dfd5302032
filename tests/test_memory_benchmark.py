"""The race of benchmarks/memory.py: what it says of bytes, and that one contender's failure is not the others'."""

import dataclasses
import io
import json

import compiled_memory
import jax
import jax.numpy as jnp
import memory
import optax
import pytest
from compiled_memory import Contender, copied_and_between
from cost import jitted_step
from rich.console import Console
from step import Problem

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")

PROBLEM = Problem("tiny", [(64, 32), (32,)], 2)
PARAMETERS = 64 * 32 + 32
PROGRAM = """HloModule jit_step

ENTRY %main.1 (p: f32[8,4], q: f32[]) -> (f32[8,4]) {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[] parameter(1)
  %copy.1 = f32[8,4]{1,0} copy(%p)
  %pair = (bf16[8,4]{1,0}, f32[8,4]{1,0}) fusion(%copy.1), kind=kLoop, calls=%fused
  %left = bf16[8,4]{1,0} get-tuple-element(%pair), index=0
  %kept = f32[8,4]{1,0} get-tuple-element(%pair), index=1
  ROOT %tuple = (f32[8,4]{1,0}) tuple(%kept)
}
"""


@pytest.fixture
def attempt():
    return memory.Attempts(Console(quiet=True))


@pytest.fixture(autouse=True)
def _jax_alone(monkeypatch):
    monkeypatch.setattr(memory, "torch_module", lambda: None)


def in_jax(tx, dtype=jnp.float32):
    return Contender(tx.init, jitted_step(tx), dtype)


BASELINE = {memory.BASELINE: in_jax(adam_tx.adamw(1e-3))}


@pytest.fixture(scope="module")
def measured():
    """AdamW beside SGD with gradients of bfloat16."""
    halves = {"halves": in_jax(optax.sgd(1e-3), jnp.bfloat16)}
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(memory, "torch_module", lambda: None)
        return memory.measure(PROBLEM, 1, BASELINE | halves, memory.Attempts(Console(quiet=True)))


@pytest.mark.exhaustive
def test_a_contender_that_does_not_compile_is_left_out_and_named(attempt):
    broken = optax.GradientTransformation(optax.sgd(1e-3).init, lambda *_: 1 / 0)
    measured = memory.measure(PROBLEM, 2, {"broken": in_jax(broken)} | BASELINE, attempt)
    assert list(measured.contenders) == [memory.BASELINE]
    assert attempt.failures == ["broken is left out, ZeroDivisionError: division by zero"]


@pytest.mark.exhaustive
def test_a_contender_that_fails_in_the_race_leaves_it_alone(attempt):
    turns_left = iter(range(3))
    turns = {
        ("tired", "default"): memory.Turn(lambda: next(turns_left), lambda: None),
        ("other", "default"): memory.Turn(lambda: None, lambda: None),
    }
    seconds = memory.race(turns, steps=1, repeats=3, attempt=attempt)
    assert {key: len(times) for key, times in seconds.items()} == {("other", "default"): 3}
    assert attempt.failures == ["tired, default is left out, StopIteration: "]


@pytest.mark.exhaustive
def test_without_the_baseline_there_is_nothing_to_compare_with(attempt):
    with pytest.raises(RuntimeError, match="adamw failed, with which all others are compared"):
        memory.measure(PROBLEM, 1, {"sgd": in_jax(optax.sgd(1e-3))}, attempt)


@pytest.mark.exhaustive
def test_least_bytes_of_adamw_are_28_a_parameter_and_their_share_is_beside_the_copys_speed(measured):
    record = dataclasses.replace(measured.contenders[memory.BASELINE], shares={})
    scalars = 2 * 64  # a count, two debiasing weights and the like, read and written
    assert 28 * PARAMETERS <= record.least <= 28 * PARAMETERS + scalars

    judged = memory.Measured({memory.BASELINE: record}, copy_bytes=2 * record.least)
    memory.judge(judged, {(memory.BASELINE, "default"): [1.0, 4.0], (memory.COPY, "default"): [1.0, 2.0]})
    assert judged.bandwidth == 2 * record.least / 1.5
    assert record.shares["default"] == (0.5 + 0.25) / 2


@pytest.mark.exhaustive
def test_gradients_of_bfloat16_count_two_bytes(measured):
    assert measured.contenders["halves"].least == 6 * PARAMETERS


@pytest.mark.exhaustive
def test_what_is_measured_can_be_printed_and_written(measured, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    memory.print_tables(console, PROBLEM, measured)
    assert "share of copy bandwidth" in console.export_text()
    memory.write(tmp_path / "out.json", memory.asdict(measured))
    assert json.loads((tmp_path / "out.json").read_text())["contenders"][memory.BASELINE]["shares"]["default"] > 0


def test_a_compiler_is_given_only_options_that_it_knows():
    assert compiled_memory.knows({"xla_cpu_copy_insertion_use_region_analysis": True})
    assert not compiled_memory.knows({"xla_of_tomorrow": True})
    assert all(map(compiled_memory.knows, memory.ways().values()))


@pytest.mark.exhaustive
def test_checksums_are_taken_only_to_compare_two_ways_of_compiling(measured, attempt, monkeypatch):
    several = set(memory.ways()) if len(memory.ways()) > 1 else set()
    assert set(measured.contenders[memory.BASELINE].digests) == several
    monkeypatch.setattr(compiled_memory, "ways", lambda: {"default": {}})
    assert memory.measure(PROBLEM, 1, BASELINE, attempt).contenders[memory.BASELINE].digests == {}


def test_the_large_size_asks_for_no_matrix_product_and_holds_a_quarter_of_a_billion_parameters(attempt):
    assert set(memory.growth("large", {}, attempt)) == {"equal_leaves"}
    one, network = (sum(map(memory.math.prod, problem.shapes)) for problem in memory.problems("large"))
    assert (one, round(network / 1e6)) == (2**27, 249)


def test_a_programs_copies_and_what_lies_between_its_kernels_are_read_off_its_text():
    assert copied_and_between(PROGRAM) == (8 * 4 * 4, 8 * 4 * 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        PROGRAM.replace("ENTRY", "OTHER"),
        PROGRAM.replace("tuple(%kept)", "fusion(%kept), calls=%last"),
        PROGRAM.replace("calls=%fused", "to_apply=%command_buffer"),
    ],
    ids=["nothing", "no entry", "no tuple at its end", "kernels elsewhere"],
)
def test_a_program_of_another_form_is_not_guessed_at(text):
    assert copied_and_between(text) == (None, None)
