"""`interop.torch.audit` names PyTorch's optimizers, where PyTorch is installed."""

import pytest

from adam_tx import interop

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.torch
KINDS = [("AdamW", {"lr": 3e-3}), ("NAdam", {}), ("RAdam", {}), ("Adamax", {}), ("Adagrad", {}), ("Adadelta", {})]


@pytest.mark.parametrize(
    ("kind", "settings"), [KINDS[0], *(pytest.param(*kind, marks=pytest.mark.exhaustive) for kind in KINDS[1:])]
)
def test_a_class_is_found_to_be_itself(kind, settings):
    found = interop.torch.audit(getattr(torch.optim, kind), promises=False, **settings)
    found.assert_is(f"torch.optim.{kind}", **({"learning_rate": settings["lr"]} if settings else {}))
    assert not found.findings


def test_an_optimizer_is_probed_by_its_settings_and_is_not_touched():
    leaf = torch.nn.Parameter(torch.ones(2))
    given = torch.optim.AdamW([leaf], lr=3e-3, weight_decay=0.2)
    interop.torch.audit(given, promises=False).assert_is("optax.adamw", weight_decay=0.2)
    assert not given.state
    assert leaf.tolist() == [1.0, 1.0]
    assert torch.get_default_dtype() == torch.float32


class OneGroup(torch.optim.AdamW):
    """Discards the groups that it is given, and steps all parameters by the first one's settings."""

    def __init__(self, params, **settings):
        params = list(params)
        if isinstance(params[0], dict):
            settings["lr"] = params[0]["lr"]
            params = [leaf for group in params for leaf in group["params"]]
        super().__init__(params, **settings)


class Uncounted(torch.optim.Adam):
    """Its step is never incremented: each is the first one."""

    def step(self, closure=None):
        for state in self.state.values():
            state["step"] = torch.zeros_like(state["step"])
        return super().step(closure)


@pytest.mark.exhaustive
def test_groups_that_are_discarded_and_steps_that_are_not_counted_are_found():
    broken = {promise.name: promise.shown for promise in interop.torch.audit(OneGroup).broken}
    assert broken["each group has its own learning rate"] == "1 at three times it"
    found = interop.torch.audit(Uncounted, promises=False)
    assert found.findings[0].startswith("Neither average is corrected for its start from zero")
