"""Record PyTorch's schedulers: `python tests/goldens/record_torch_schedulers.py` writes torch_schedulers.json.

Of each the groups and the state at one epoch, and what the groups have at that and at other epochs.
"""

import copy
import json
import pathlib
import warnings

try:
    import torch
    from torch.optim import lr_scheduler
except ImportError:  # then CASES cannot be made, and nobody makes them
    torch = lr_scheduler = None

FILE = pathlib.Path(__file__).with_name("torch_schedulers.json")
EPOCHS = 200
STATE_AT = 83


def shrinking(epoch):
    """What the LambdaLR multiplies by, for PyTorch and JAX."""
    return 0.95**epoch


CASES = {
    "CosineAnnealingLR": lambda made: lr_scheduler.CosineAnnealingLR(made, 60, 1e-3),
    "CosineAnnealingLR to zero": lambda made: lr_scheduler.CosineAnnealingLR(made, 60),
    "StepLR": lambda made: lr_scheduler.StepLR(made, 7, 0.5),
    "MultiStepLR": lambda made: lr_scheduler.MultiStepLR(made, [0, 3, 50, 50, 90], 0.3),
    "ExponentialLR": lambda made: lr_scheduler.ExponentialLR(made, 0.97),
    "LinearLR": lambda made: lr_scheduler.LinearLR(made, 0.2, 0.9, 90),
    "LinearLR to zero": lambda made: lr_scheduler.LinearLR(made, 1.0, 0.0, 30),
    "LinearLR without epochs": lambda made: lr_scheduler.LinearLR(made, 0.2, 0.9, 0),
    "ConstantLR": lambda made: lr_scheduler.ConstantLR(made, 0.3, 90),
    "ConstantLR without epochs": lambda made: lr_scheduler.ConstantLR(made, 0.3, 0),
    "PolynomialLR": lambda made: lr_scheduler.PolynomialLR(made, 120, 2.0),
    "PolynomialLR without epochs": lambda made: lr_scheduler.PolynomialLR(made, 0, 2.0),
    "CosineAnnealingWarmRestarts": lambda made: lr_scheduler.CosineAnnealingWarmRestarts(made, 5, 2, 1e-4),
    "CosineAnnealingWarmRestarts, equal": lambda made: lr_scheduler.CosineAnnealingWarmRestarts(made, 17),
    "OneCycleLR": lambda made: lr_scheduler.OneCycleLR(made, 0.1, EPOCHS),
    "OneCycleLR of three phases": lambda made: lr_scheduler.OneCycleLR(
        made, [0.1, 0.3], EPOCHS, three_phase=True, anneal_strategy="linear", cycle_momentum=False
    ),
    "LambdaLR": lambda made: lr_scheduler.LambdaLR(made, shrinking),
    "SequentialLR": lambda made: lr_scheduler.SequentialLR(
        made, [lr_scheduler.LinearLR(made, 0.1, 1.0, 20), lr_scheduler.CosineAnnealingLR(made, 150, 1e-4)], [20]
    ),
    "SequentialLR of many": lambda made: lr_scheduler.SequentialLR(
        made,
        [
            lr_scheduler.ConstantLR(made, 0.1, 20),
            lr_scheduler.ExponentialLR(made, 0.98),
            lr_scheduler.CosineAnnealingWarmRestarts(made, 13, 2),
            lr_scheduler.StepLR(made, 9),
            lr_scheduler.PolynomialLR(made, 50),
        ],
        [10, 40, 70, 120],
    ),
    "ChainedScheduler": lambda made: lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.LinearLR(made, 0.1, 1.0, 25),
            lr_scheduler.ExponentialLR(made, 0.99),
            lr_scheduler.StepLR(made, 40, 0.5),
            lr_scheduler.PolynomialLR(made, 300),
        ]
    ),
}


def run(case, states_at):
    """The rates and momenta of two groups at each epoch; and the groups and the state at some."""
    rates = (0.1, 0.02)
    made = torch.optim.AdamW([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])
    scheduler = CASES[case](made)
    found, states = [], {}
    for epoch in range(EPOCHS + 1):
        if epoch in states_at:
            states[epoch] = copy.deepcopy((made.state_dict()["param_groups"], scheduler.state_dict()))
        found.append([(group["lr"], group["betas"][0]) for group in made.param_groups])
        if epoch < EPOCHS:
            made.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that SequentialLR's way of stepping is deprecated
                scheduler.step()
    return found, states


def as_json(value):
    """A state with a Counter as pairs, which JSON would write with text for keys."""
    if isinstance(value, dict) and value and all(isinstance(key, int) for key in value):
        return [[key, n] for key, n in value.items()]
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def record():
    """Of each case what its name says."""
    epochs = [*range(0, EPOCHS + 1, 9), 1, 10, 20, 21, 30, 31, 60, 61, 83, 84, 121, EPOCHS]
    records = {}
    for case in CASES:
        found, states = run(case, [STATE_AT])
        groups, state = as_json(states[STATE_AT])
        records[case] = {
            "groups": groups,
            "state": state,
            "epochs": epochs,
            "rates": [[rate for rate, _ in found[epoch]] for epoch in epochs],
            "momenta": [found[epoch][0][1] for epoch in epochs],
        }
    return records


if __name__ == "__main__":
    FILE.write_text(json.dumps(record()) + "\n")
