"""What a user sees of the package: names, signatures, help."""

import inspect

import pytest

import adam_tx

MODULES = {
    "adam_tx": adam_tx,
    **{name: getattr(adam_tx, name) for name in ("interop", "numerics", "optimizers", "schedules", "storage")},
    "interop.keras": adam_tx.interop.keras,
    "interop.torch": adam_tx.interop.torch,
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_completion_offers_the_public_names_alone(module):
    shown = [name for name in dir(module) if not name.startswith("__")]
    assert shown == sorted(module.__all__)
    assert all(hasattr(module, name) for name in shown)
    assert adam_tx.__version__


def test_the_modules_of_other_frameworks_offer_what_is_meant():
    assert adam_tx.interop.torch.__all__ == [
        *("audit", "flax_axes", "from_averaged_model", "from_param_group", "from_param_groups", "from_state_dict"),
        *("to_averaged_model", "to_state_dict", "with_schedules"),
    ]
    assert adam_tx.interop.keras.__all__ == [
        *("from_config", "from_variables", "read_file", "to_variables", "write_file")
    ]


def test_signatures_read_as_they_are_written():
    assert str(inspect.signature(adam_tx.scale_by_lion_momentum)) == (
        "(b1: Decay = 0.9, b2: Decay = 0.99, *, dtype: StorageLike | None = None) -> Link"
    )
    for name in (*adam_tx.optimizers.__all__, "chain", "parallel", "in_eigenbasis", "as_link"):
        signature = str(inspect.signature(getattr(adam_tx, name)))
        assert "Annotated" not in signature, name
        assert signature.endswith("-> Link"), name


def test_everything_public_is_documented_in_a_line_that_says_what_it_does():
    for name in adam_tx.__all__:
        thing = getattr(adam_tx, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert (thing.__doc__ or "").strip(), name
            assert len(thing.__doc__.strip().splitlines()[0]) <= 120, name
