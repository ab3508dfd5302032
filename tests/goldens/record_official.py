"""Record what the official optimizers do: `python tests/goldens/record_official.py CLONES` writes official.json.

CLONES holds a clone of each repository in SOURCES, at its commit, in a directory named `<owner>+<name>`.
Float64, a hundred steps, or as many as an option says, on `oracles.problem` ("vector") or
`oracles.matrix_problem` ("matrix", of the shape of the recorded parameters), lr 0.01 and, wherever there is
one, an eps of 1e-2 so that its place shows.

The options are named in our words; `epsilon_hat` says that eps is added to the root before the bias correction.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import types

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # C-Optim and MARS decorate with torch.compile; run them eagerly
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import oracles

FILE = pathlib.Path(__file__).with_name("official.json")

# The commit, and git's hashes of the files that are run; the first of them is the one that is loaded.
SOURCES = {
    "nikhilvyas/SOAP": (
        "a1e553530fde97d0e6b307d7c82ac6d38b072340",
        {"soap.py": "a6362cc9ed2f50ed299204eb3bf07715e7280757"},
    ),
    "AGI-Arena/MARS": (
        "4831e28eba863a4e69d7e9474ff8e73bc1b410fe",
        {"MARS/optimizers/mars.py": "08c1583855a04e99200e2d049e3cc8d3a5e83df5"},
    ),
    "kyleliang919/C-Optim": (
        "2c0517c4db2e50b56d389ba4803eab1f4b3b8ae3",
        {
            "c_adamw.py": "2adb73ffc3b15b6cfc6759385ab95f647efa8d4d",
            "opt_utils.py": "0e2960f4224b35af419f36f30267978a1eb9946c",
        },
    ),
    "zyushun/Adam-mini": (
        "402aadfed23719f3b92c8e78b5d49ad499ff7ada",
        {"adam_mini/adam_mini.py": "5099fb4d252b9c649ad788b0ebad9d07a4329741"},
    ),
    "warner-benjamin/optimi": (
        "17a3d5422f3e41bb8973e1e4c9b39206c0d93b6d",
        {
            "optimi/stableadamw.py": "0cb68f3929104cdbbe854db3d688b2b6debe22be",
            "optimi/optimizer.py": "5a1c277701319a29f4076d2835c6a8c95736e9d5",
            "optimi/utils.py": "7764b8984a84fce0a5c090a1e3f31a5217f5c139",
        },
    ),
    "lucidrains/adam-atan2-pytorch": (
        "b42d7cbe2905956d6eb973cd4feb1082645674e8",
        {"adam_atan2_pytorch/adam_atan2.py": "62eee24b7390620c15e543ba353c90e04837633e"},
    ),
    "LiyuanLucasLiu/RAdam": (
        "d9fd30a337894c4003768561d45e8730dbd41333",
        {"radam/radam.py": "0f55fa1730c535aaaa8b214759840866604186ea"},
    ),
    "Z-T-WANG/LaProp-Optimizer": (
        "a419916505bfb5d6a55f6b7b0ae14eb401b3be12",
        {"laprop.py": "88663f000f5ceb066f3bfd8f8f2a67981a7f465a"},
    ),
    "zichongli5/NorMuon": (
        "d45c9a4280d758e2cf0b2b8333765d040e953937",
        {"normuon.py": "8598c7e5c5646d443c5be36e58ee3b2044d97c67"},
    ),
    "facebookresearch/schedule_free": (
        "70785b53e778d0e872c0bbb75ff4ee54ee10c291",
        {
            "schedulefree/adamw_schedulefree.py": "e8f5a5d52f497577fa229b3c4341feca251bb6e9",
            "schedulefree/sgd_schedulefree.py": "f1cc44e4304e749002c2c0556c21ab6f199394ea",
        },
    ),
    "apple/ml-ademamix": (
        "c3d73c09f1287e5c33b95189bb0aa7de0a5a7667",
        {"pytorch/ademamix.py": "e7d3aa37fbb4a26222478ede3ffbbb1160081865"},
    ),
}


def soap(module, weights, o):
    return module.SOAP([weights], precondition_frequency=o["precondition_frequency"], **usual(o))


def mars_adamw(module, weights, o):
    return module.MARS([weights], gamma=o["gamma"], optimize_1d=weights.ndim == 1, **usual(o))


def cautious(module, weights, o):
    return module.AdamW([weights], foreach=not o["epsilon_hat"], no_deprecation_warning=True, **usual(o))


def adam_mini(module, weights, o):
    """A head is `dim * dim / n_heads` numbers there, which is two rows of four."""
    return module.Adam_mini([(o["name"], weights)], dim=4, n_heads=2, verbose=False, **usual(o))


def stable_adamw(module, weights, o):
    return module.StableAdamW([weights], foreach=False, triton=False, **usual(o))


def adam_atan2(module, weights, o):
    return module.AdamAtan2([weights], a=o["a"], b=o["b"], **usual(o))


def radam(module, weights, o):
    return module.RAdam([weights], degenerated_to_sgd=o["degenerated_to_sgd"], **usual(o))


def laprop(module, weights, o):
    return module.LaProp([weights], **usual(o))


def ademamix(module, weights, o):
    special = {"alpha": o["alpha"], "beta3_warmup": o["b3_warmup"], "alpha_warmup": o["alpha_warmup"]}
    return module.AdEMAMix([weights], **special, **usual(o))


def normuon(module, weights, o):
    """The weights of a layer are (outputs, inputs) there."""
    names = {"momentum": "b1", "beta2": "b2", "lr": "lr", "weight_decay": "weight_decay"}
    return module.SingleDeviceNorMuon([weights], **{there: o[here] for there, here in names.items()})


def schedule_free(module, weights, o):
    """In the mode in which it trains."""
    optimizer = module.AdamWScheduleFree([weights], **averaging(o), **usual(o))
    optimizer.train()
    return optimizer


def schedule_free_sgd(module, weights, o):
    """That of gradient descent is in a file beside it."""
    beside = importlib.import_module(module.__name__.replace("adamw", "sgd"))
    optimizer = beside.SGDScheduleFree(
        [weights], lr=o["lr"], momentum=o["b1"], weight_decay=o["weight_decay"], **averaging(o)
    )
    optimizer.train()
    return optimizer


def averaging(o):
    """How the authors of schedule-free learning average."""
    return {name: o[name] for name in ("warmup_steps", "r", "weight_lr_power") if name in o}


def usual(o):
    """What all of them call the same."""
    betas = tuple(o[name] for name in ("b1", "b2", "b3") if name in o)
    return {"betas": betas} | {name: o[name] for name in ("lr", "eps", "weight_decay") if name in o}


LR = {"lr": [0.01], "b1": [0.9]}
EPS = LR | {"b2": [0.999], "eps": [1e-2]}
DECAY = {"weight_decay": [0.0, 0.1]}
HAT, NO_HAT = {"epsilon_hat": [True]}, {"epsilon_hat": [False]}

SOAP = EPS | DECAY | HAT | {"b1": [0.95], "b2": [0.95], "decay_after_step": [True], "first_call_skipped": [True]}
MARS = EPS | DECAY | NO_HAT | {"b1": [0.95], "b2": [0.99], "gamma": [0.025], "max_norm": [1.0]}
CAUTIOUS = EPS | DECAY | {"mean_min": [1e-3]}
MINI = EPS | DECAY | NO_HAT
STABLE = EPS | DECAY | NO_HAT | {"b2": [0.99], "max_rms": [1.0], "clip_decay_too": [True]}
ATAN2 = LR | DECAY | {"b2": [0.99], "a": [1.27], "b": [1.0]}
RADAM = EPS | HAT | {"b2": [0.9, 0.999], "rho_min": [5], "degenerated_to_sgd": [False, True]}
NORMUON = LR | {"weight_decay": [0.1]} | {"b1": [0.95], "b2": [0.9]}
FREE = EPS | {"weight_decay": [0.1], "steps": [200]}
WARM = {"warmup_steps": [50], "r": [0.5], "weight_lr_power": [1.0]}
FREE_SGD = LR | WARM | {"lr": [1e-4], "weight_decay": [0.1], "steps": [200]}
MIX = EPS | DECAY | NO_HAT | {"b3": [0.999], "alpha": [2.0]}

# Member, repository, constructor, shape of the problem, grid of options.
CASES = [
    ("soap", "nikhilvyas/SOAP", soap, (5, 4), SOAP | {"precondition_frequency": [10, 3]}),
    ("soap", "nikhilvyas/SOAP", soap, (12,), SOAP | {"precondition_frequency": [10]}),
    # The norm of every gradient is above max_norm, so that there is one case where some are below it.
    ("mars_adamw", "AGI-Arena/MARS", mars_adamw, (5, 4), MARS | {"grad_scale": [1.0, 0.05]}),
    ("mars_adamw", "AGI-Arena/MARS", mars_adamw, (12,), MARS),
    ("cautious hat", "kyleliang919/C-Optim", cautious, (5, 4), CAUTIOUS | HAT),
    ("cautious hat", "kyleliang919/C-Optim", cautious, (12,), CAUTIOUS | HAT),
    ("cautious", "kyleliang919/C-Optim", cautious, (5, 4), CAUTIOUS | NO_HAT),
    ("cautious", "kyleliang919/C-Optim", cautious, (12,), CAUTIOUS | NO_HAT),
    ("adam_mini", "zyushun/Adam-mini", adam_mini, (5, 4), MINI | {"name": ["mlp.weight"], "block": [[1, 4]]}),
    ("adam_mini", "zyushun/Adam-mini", adam_mini, (6, 4), MINI | {"name": ["query.weight"], "block": [[2, 4]]}),
    ("adam_mini", "zyushun/Adam-mini", adam_mini, (5, 4), MINI | {"name": ["weight"], "block": [[5, 4]]}),
    # Biases are not decayed there whatever weight_decay is.
    (
        "adam_mini",
        "zyushun/Adam-mini",
        adam_mini,
        (12,),
        MINI | {"name": ["bias"], "block": [[1]], "weight_decay": [0.0]},
    ),
    ("stable_adamw", "warner-benjamin/optimi", stable_adamw, (5, 4), STABLE),
    ("stable_adamw", "warner-benjamin/optimi", stable_adamw, (12,), STABLE),
    ("adam_atan2", "lucidrains/adam-atan2-pytorch", adam_atan2, (5, 4), ATAN2),
    ("adam_atan2", "lucidrains/adam-atan2-pytorch", adam_atan2, (12,), ATAN2),
    ("radam", "LiyuanLucasLiu/RAdam", radam, (12,), RADAM),
    ("laprop", "Z-T-WANG/LaProp-Optimizer", laprop, (12,), EPS | NO_HAT),
    ("normuon", "zichongli5/NorMuon", normuon, (5, 4), NORMUON),
    ("normuon", "zichongli5/NorMuon", normuon, (4, 6), NORMUON),
    ("schedule_free_adamw", "facebookresearch/schedule_free", schedule_free, (12,), FREE),
    ("schedule_free_adamw", "facebookresearch/schedule_free", schedule_free, (12,), FREE | WARM),
    ("schedule_free_sgd", "facebookresearch/schedule_free", schedule_free_sgd, (12,), FREE_SGD),
    ("ademamix", "apple/ml-ademamix", ademamix, (12,), MIX | {"b3_warmup": [None], "alpha_warmup": [None]}),
    ("ademamix", "apple/ml-ademamix", ademamix, (12,), MIX | {"b3_warmup": [50], "alpha_warmup": [50]}),
]


def load(directory, repository):
    """The first of the files of a repository as a module, once all of them are seen to be those of the commit."""
    root = directory / repository.replace("/", "+")
    commit, files = SOURCES[repository]
    for path, expected in files.items():
        content = (root / path).read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != expected:
            raise ValueError(f"{root / path} is not that of {repository}@{commit}")
    file = root / next(iter(files))
    stub_package(file.parent)
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub_package(folder):
    """Make a package of a folder without running its `__init__`, so that imports from files beside a file work."""
    package = types.ModuleType(folder.name)
    package.__path__ = [str(folder)]
    sys.modules[folder.name] = package


@contextlib.contextmanager
def float64_is_kept():
    """Let `Tensor.float` and `Tensor.bfloat16` return a float64 tensor as it is.

    SOAP decomposes its matrices in float32, RAdam does all in float32, and NorMuon its products in bfloat16. The
    goldens are to compare rules, not roundings.
    """
    originals = {name: getattr(torch.Tensor, name) for name in ("float", "bfloat16")}
    for name, original in originals.items():
        setattr(torch.Tensor, name, lambda x, to=original: x if x.dtype == torch.float64 else to(x))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


def run(module, build, shape, options):
    """The parameters after the hundred steps, and where there is an average of them, that."""
    steps = options.get("steps", 100)
    vector = len(shape) == 1
    params, grads = oracles.problem(steps, shape[0]) if vector else oracles.matrix_problem(steps, shape)
    weights = torch.tensor(params, requires_grad=True)
    optimizer = build(module, weights, options)
    for grad in grads * options.get("grad_scale", 1.0):
        weights.grad = torch.tensor(grad)
        optimizer.step()
    assert weights.dtype == torch.float64
    end = {"params": weights.tolist()}
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        end["average"] = weights.tolist()
    return end


def record(directory):
    """One record a combination: member, where it is from, options, problem, the last parameters."""
    modules = {repository: load(directory, repository) for repository in SOURCES}
    records = []
    for member, repository, build, shape, grid in CASES:
        for values in itertools.product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            records.append(
                {
                    "member": member,
                    "source": f"{repository}@{SOURCES[repository][0]}",
                    "options": options,
                    "problem": "vector" if len(shape) == 1 else "matrix",
                    **run(modules[repository], build, shape, options),
                }
            )
    return records


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.dont_write_bytecode = True  # leave the clones as they are
    torch.set_default_dtype(torch.float64)
    with float64_is_kept():
        FILE.write_text(json.dumps({"records": record(pathlib.Path(sys.argv[1]))}, indent=1) + "\n")
