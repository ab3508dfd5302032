"""What `benchmarks/same_bits.py` says of two versions: which settings differ, and where."""

import functools

import pytest
import same_bits
from rich.console import Console

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")  # for optax.apply_updates of bfloat16 weights


@pytest.fixture(scope="module")
def found():
    """An average of gradients, and the same with another decay."""
    make = {"one": 0.5, "same": 0.5, "other": 0.25}
    return {
        name: same_bits.hashes(functools.partial(adam_tx.scale_by_momentum, decay), 2) for name, decay in make.items()
    }


def test_the_same_setting_has_the_same_bits(found):
    assert same_bits.differences({"momentum": found["one"]}, {"momentum": found["same"]}) == {}


def test_what_differs_is_listed_by_setting_and_path(found):
    differing = same_bits.differences({"momentum": found["one"]}, {"momentum": found["other"]})["momentum"]
    assert {path.split("/")[0] for path in differing} == {"update 0", "update 1", "end"}  # not the beginning
    assert "update 1/kernel/half" in differing
    assert "end/mu/bias/scalar" in differing
    assert "end/count" not in differing


def test_a_setting_of_one_version_alone_differs(found):
    assert same_bits.differences(found, {"one": found["one"], "same": found["same"]}).keys() == {"other"}


def test_only_hashes_of_one_installation_are_compared(found):
    record = {"installation": same_bits.installation(), "settings": found}
    quiet = Console(quiet=True)
    assert same_bits.compare(quiet, record, record)
    assert not same_bits.compare(quiet, record, record | {"settings": {}})
    with pytest.raises(SystemExit, match="not comparable"):
        same_bits.compare(quiet, record, record | {"installation": {"python": "3.0"}})
