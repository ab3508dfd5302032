"""Record what PyTorch's Adam and AdamW do: `python tests/goldens/record_torch.py` writes torch_adam.json.

Float64, a hundred steps on `oracles.problem`, over every combination of the
flags that change the rule. eps is 1e-2 so that its place shows.
"""

import itertools
import json
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import oracles

FILE = pathlib.Path(__file__).with_name("torch_adam.json")


def record():
    """One record a combination: optimizer, its param group as a state_dict has it, the last parameters."""
    records = []
    for name, amsgrad, maximize, weight_decay in itertools.product(
        ("Adam", "AdamW"), (False, True), (False, True), (0.0, 0.1)
    ):
        params, grads = oracles.problem()
        weights = torch.tensor(params, dtype=torch.float64, requires_grad=True)
        options = {"lr": 0.01, "eps": 1e-2, "amsgrad": amsgrad, "maximize": maximize, "weight_decay": weight_decay}
        optimizer = getattr(torch.optim, name)([weights], **options)
        for grad in grads:
            weights.grad = torch.tensor(grad, dtype=torch.float64)
            optimizer.step()
        (group,) = optimizer.state_dict()["param_groups"]
        records.append({"optimizer": name, "group": group, "params": weights.tolist()})
    return records


if __name__ == "__main__":
    FILE.write_text(json.dumps({"torch": torch.__version__, "records": record()}, indent=1) + "\n")
