"""What a user sees of the package: names, signatures, help."""

import inspect

import adam_tx


def test_completion_offers_the_public_names_alone():
    shown = {name for name in dir(adam_tx) if not name.startswith("__")}
    assert shown == set(adam_tx.__all__)
    assert all(hasattr(adam_tx, name) for name in adam_tx.__all__)
    assert adam_tx.__version__


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
