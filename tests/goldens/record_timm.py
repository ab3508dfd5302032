"""Record the groups that timm makes for layer decay: `python tests/goldens/record_timm.py` writes timm.json.

It needs timm, torch and torchvision. Each parameter of a vision transformer is there with its shape, the factor of its
learning rate and its weight decay.
"""

import json
import pathlib

import timm
from timm.optim import param_groups_layer_decay

FILE = pathlib.Path(__file__).with_name("timm.json")
SMALL = {"embed_dim": 12, "num_heads": 3, "img_size": 32, "num_classes": 10}
CASES = [{"depth": 12, "decay": 0.75}, {"depth": 3, "decay": 0.65}]


def record(depth, decay):
    """One record: the case, and of each parameter what its group says."""
    model = timm.create_model("vit_tiny_patch16_224", depth=depth, **SMALL)
    names = {id(param): name for name, param in model.named_parameters()}
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=decay)
    params = {
        names[id(param)]: [list(param.shape), group["lr_scale"], group["weight_decay"]]
        for group in groups
        for param in group["params"]
    }
    return {"depth": depth, "decay": decay, "params": {name: params[name] for name in names.values()}}


if __name__ == "__main__":
    records = [record(**case) for case in CASES]
    FILE.write_text(json.dumps({"timm": timm.__version__, "records": records}, separators=(",", ":")) + "\n")
