"""What a step costs on an H100 and on a TPU v5e, read off the programs that their compilers make here."""

import json

import pytest
import target_costs
from jaxlib.version import __version__ as jaxlib
from target_costs import PROGRAMS, STORED, TARGETS
from targets import MissingError

KNOWN = json.loads(STORED.read_text())["now"]
RENEW = "renew the table by `JAX_PLATFORMS=cpu python benchmarks/target_costs.py --measure now --publish`"

compiling = pytest.mark.usefixtures("usual_compiler", "standard_promotion")


def measured(program, target):
    try:
        return target_costs.measured(program, target)
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.mark.targets
@compiling
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_step_for_another_device_costs_what_is_published(target, program):
    """Of one leaf of 33 million. A version of a compiler gives the same program each time, so nothing is tolerated."""
    found, known = measured(program, target), KNOWN[target][program]
    assert found.keys() == known.keys(), f"It is made where it was refused, or the other way round: {RENEW}"
    assert found.get("in place", True)
    assert not found.get("spilled"), "a kernel keeps numbers in memory, for which there are no registers"
    more = target_costs.worse(found, known)
    assert not more, f"If it has to cost more, {RENEW}"
    if jaxlib == KNOWN["jaxlib"]:
        assert found == known, f"It costs less than is published: {RENEW}"


@pytest.mark.targets
@compiling
@pytest.mark.parametrize("program", [program for program, (_, around) in PROGRAMS.items() if not around])
def test_a_step_on_a_gpu_reads_nothing_more_than_twice(program):
    """Whatever is published: once for the largest of each block, and once to step."""
    least, read = target_costs.least(program)
    assert measured(program, "h100")["bytes"] <= least + read


def test_what_a_readme_says_of_other_devices_is_what_was_measured():
    table = target_costs.table(json.loads(STORED.read_text()))
    assert "\n".join(table) in target_costs.README.read_text(), "python benchmarks/target_costs.py --publish"
