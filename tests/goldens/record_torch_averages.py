"""Record what PyTorch averages weights to: `python tests/goldens/record_torch_averages.py` writes torch_averages.json.

Float64, sixty steps of Adam on a layer whose gradients are those of `oracles`.
"""

import json
import pathlib
import sys

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import oracles

FILE = pathlib.Path(__file__).with_name("torch_averages.json")
STEPS = 60
CASES = {
    "ema": {"of": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, "start": 1, "every": 1},
    "ema, late and seldom": {"of": {"avg_fn": get_ema_avg_fn(0.5)}, "start": 7, "every": 3},
    "swa": {"of": {}, "start": 10, "every": 5},
}


def problem():
    """A layer's weight and bias, and their gradients."""
    (weight, of_weight), (bias, of_bias) = oracles.matrix_problem(STEPS, (8, 4)), oracles.problem(STEPS, size=8)
    return {"weight": weight, "bias": bias}, {"weight": of_weight, "bias": of_bias}


def record(of, start, every):
    """Weights, the averaged model and the optimizer's state, half way and at the end."""
    start_weights, grads = problem()
    layer = torch.nn.Linear(4, 8).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.tensor(start_weights[name]))
    averaged = AveragedModel(layer, **of)
    optimizer = torch.optim.Adam(layer.named_parameters(), lr=0.01)
    found = []
    for t in range(1, STEPS + 1):
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.tensor(grads[name][t - 1])
        optimizer.step()
        if t >= start and (t - start) % every == 0:
            averaged.update_parameters(layer)
        if t in (STEPS // 2, STEPS):
            found.append(
                {
                    "params": {name: parameter.tolist() for name, parameter in layer.named_parameters()},
                    "averaged": {name: value.tolist() for name, value in averaged.state_dict().items()},
                    "state": {
                        k: {slot: x.tolist() for slot, x in of.items()}
                        for k, of in optimizer.state_dict()["state"].items()
                    },
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            )
    return {"start": start, "every": every, "half": found[0], "end": found[1]}


if __name__ == "__main__":
    cases = {name: record(**case) for name, case in CASES.items()}
    FILE.write_text(json.dumps({"torch": torch.__version__, "cases": cases}) + "\n")
