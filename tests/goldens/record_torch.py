"""Record what PyTorch's optimizers do: `python tests/goldens/record_torch.py` writes torch.json.

Float64, a hundred steps on `oracles.problem`, over every combination of the
flags that change the rule. eps is 1e-2 so that its place shows.
"""

import itertools
import json
import pathlib
import sys
from unittest import mock

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import oracles

FILE = pathlib.Path(__file__).with_name("torch.json")

EPS = {"lr": [0.01], "eps": [1e-2]}
FLAGS = {"maximize": [False, True], "weight_decay": [0.0, 0.1]}
ADAFACTOR = {"lr": [0.01, 0.5], "eps": [(1e-2, 1e-3), (None, 10.0)], "d": [1.0], "beta2_decay": [-0.6]}
CASES = {
    "Adam": EPS | {"amsgrad": [False, True]} | FLAGS,
    "AdamW": EPS | {"amsgrad": [False, True]} | FLAGS,
    "NAdam": EPS | {"momentum_decay": [0.004, 0.1], "decoupled_weight_decay": [False, True]} | FLAGS,
    "RAdam": EPS | {"decoupled_weight_decay": [False, True]} | FLAGS,
    "Adamax": EPS | FLAGS,
    "RMSprop": EPS | {"centered": [False, True], "momentum": [0, 0.9]} | FLAGS,
    "Adagrad": EPS | {"lr_decay": [0, 0.1], "initial_accumulator_value": [0, 0.5]} | FLAGS,
    "SGD": {"lr": [0.01], "momentum": [0, 0.9], "dampening": [0, 0.5]} | FLAGS,
    "Adafactor": ADAFACTOR | FLAGS,
    "Adafactor matrix": ADAFACTOR | FLAGS,
    "Muon matrix": {
        "lr": [0.01],
        "momentum": [0.95],
        "weight_decay": [0.0, 0.1],
        "nesterov": [True, False],
        "eps": [1e-2],
        "adjust_lr_fn": [None, "match_rms_adamw"],
    },
    "SGD nesterov": {"lr": [0.01], "momentum": [0.9], "nesterov": [True]} | FLAGS,
}
CARRIED = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "SGD", "Muon")


@mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone)  # in which Muon would make its products
def record():
    """One record a combination: optimizer, its param group as a state_dict has it, the last parameters.

    And of the classes whose state can be carried over, parameters and state half way.
    """
    torch.set_default_dtype(torch.float64)  # that of NAdam's product of decays
    records = []
    for name, grid in CASES.items():
        for values in itertools.product(*grid.values()):
            params, grads = oracles.matrix_problem() if name.endswith("matrix") else oracles.problem()
            weights = torch.tensor(params, dtype=torch.float64, requires_grad=True)
            optimizer = getattr(torch.optim, name.split()[0])([weights], **dict(zip(grid, values, strict=True)))
            half = {}
            for n, grad in enumerate(grads, start=1):
                weights.grad = torch.tensor(grad, dtype=torch.float64)
                optimizer.step()
                kept = optimizer.state_dict()["state"].get(0)
                if name.split()[0] in CARRIED and kept and n == len(grads) // 2:
                    state = {slot: value.tolist() for slot, value in kept.items()}
                    half = {"half": {"params": weights.tolist(), "state": state}}
            (group,) = optimizer.state_dict()["param_groups"]
            records.append({"optimizer": name.split()[0], "group": group, "params": weights.tolist()} | half)
    return records


if __name__ == "__main__":
    FILE.write_text(json.dumps({"torch": torch.__version__, "records": record()}, indent=1) + "\n")
