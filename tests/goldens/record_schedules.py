"""Record training stacks' learning rates: `python tests/goldens/record_schedules.py CLONES` writes schedules.json.

CLONES holds a clone of each repository in SOURCES, at its commit, in a directory named `<owner>+<name>`. Their
definitions are run without the packages around them, in float64, at the first counts of a short run.
"""

import ast
import dataclasses
import hashlib
import json
import math
import pathlib
import sys
import types
import typing
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

FILE = pathlib.Path(__file__).with_name("schedules.json")
COUNTS = range(72)

# The commit, the file and git's hash of it, and what is run of it.
SOURCES = {
    "allenai/OLMo-core": (
        "fa6c5014c9f6e9ee789da2d9c20d5126fee8df0d",
        "src/olmo_core/optim/scheduler.py",
        "87980e7b26fc8edcc787f31f96784906b61a0a69",
        ["SchedulerUnits", "Scheduler", "WSD", "WSDS", "InvSqrtWithWarmup", "_linear_warmup", "_linear_decay"],
    ),
    "stanford-crfm/levanter": (
        "9263f81e8b453241332c2c0b2d2001bfb2d2241c",
        "src/levanter/optim/config.py",
        "7d94d7b93e303b039b79eba64228becc46f6d3f3",
        ["OptimizerConfig", "_convert_frac_or_steps", "_inv_sqrt_decay_schedule"],
    ),
    "AI-Hypercomputer/maxtext": (
        "e591f30cbbf217ed67ef71263ec0538239f9c3b8",
        "src/maxtext/utils/maxtext_utils.py",
        "76a9c842e249ae7762cc03acf54f26ee0fa76079",
        ["create_learning_rate_schedule"],
    ),
    "google-research/big_vision": (
        "0127fb6b337ee2a27bf4e54dea79cff176527356",
        "big_vision/utils.py",
        "a954300f9ac7e4ccce27c38eb1367d3233451532",
        ["steps", "create_learning_rate_schedule"],
    ),
}


class AnyName(types.SimpleNamespace):
    """Stands for what a definition names and this recording does not run."""

    def __getattr__(self, name):
        return name


IN_FLOAT64 = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
"""big_vision rounds what it computed to float32; the goldens are to compare rules, not roundings."""


def definitions(directory, repository):
    """What is run of a repository, once the file is seen to be that of the commit; without decorators that register."""
    commit, path, expected, names = SOURCES[repository]
    content = (directory / repository.replace("/", "+") / path).read_bytes()
    if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != expected:
        raise ValueError(f"{path} is not that of {repository}@{commit}")
    nodes = [node for node in ast.parse(content).body if getattr(node, "name", "") in names]
    for node in nodes:
        node.decorator_list = [by for by in node.decorator_list if ast.unparse(by).startswith("dataclass")]
    made = {
        **vars(typing),
        "np": np,
        "jnp": IN_FLOAT64,
        "optax": optax,
        "warnings": warnings,
        "math": math,
        "sqrt": math.sqrt,
        "pi": math.pi,
        "dataclass": dataclasses.dataclass,
        "field": dataclasses.field,
        "abc": __import__("abc"),
        "ABCMeta": type,
        "abstractmethod": lambda method: method,
        "Config": type("Config", (), {}),
        "Registrable": type("Registrable", (), {}),
        "StrEnum": object,
        "LR_FIELD": "lr",
        "INITIAL_LR_FIELD": "initial_lr",
        "torch": AnyName(Tensor=float),
        "draccus": AnyName(ChoiceRegistry=type("ChoiceRegistry", (), {})),
        "LrSchedule": type(None),
        "types": AnyName(),
    }
    exec(compile(ast.Module(nodes, []), path, "exec"), made)
    return types.SimpleNamespace(**made)


def olmo(made, of, peak, steps, **settings):
    scheduler = getattr(made, of)(**settings)
    return lambda count: scheduler.get_lr(peak, min(count, steps), steps)


def levanter(made, peak, steps, **settings):
    config = type("Config", (made.OptimizerConfig,), {"build": None})(learning_rate=peak, **settings)
    return config.lr_scheduler(steps)


def maxtext(made, **settings):
    named = {"lr_schedule_type": "WSD", **settings}
    made.create_learning_rate_schedule.__globals__["types"] = types.SimpleNamespace(
        LearningRateScheduleType=AnyName(), WsdDecayStyle=AnyName()
    )
    return made.create_learning_rate_schedule(types.SimpleNamespace(**named))


def big_vision(made, **settings):
    return made.create_learning_rate_schedule(**settings)


OLMO, LEVANTER, MAXTEXT, BIG_VISION = SOURCES
CASES = {
    "OLMo-core WSD": (
        OLMO,
        olmo,
        {"of": "WSD", "peak": 0.3, "steps": 60, "warmup": 7, "decay": 20, "decay_fraction": None},
    ),
    "OLMo-core WSD, ends above zero": (
        OLMO,
        olmo,
        {
            "of": "WSD",
            "peak": 0.3,
            "steps": 60,
            "warmup": 7,
            "decay": 20,
            "decay_fraction": None,
            "warmup_min_lr": 0.1,
            "decay_min_lr": 0.02,
        },
    ),
    "OLMo-core WSDS": (
        OLMO,
        olmo,
        {
            "of": "WSDS",
            "peak": 0.3,
            "steps": 64,
            "period_lengths": [24, 16, 24],
            "warmup": 5,
            "decay": 6,
            "decay_min_lr": 0.02,
        },
    ),
    "OLMo-core InvSqrtWithWarmup": (
        OLMO,
        olmo,
        {"of": "InvSqrtWithWarmup", "peak": 0.3, "steps": 99, "warmup": 8, "alpha_f": 0.1},
    ),
    "Levanter linear": (
        LEVANTER,
        levanter,
        {"peak": 0.3, "steps": 60, "warmup": 7, "decay": 20, "lr_schedule": "linear"},
    ),
    "Levanter cosine": (
        LEVANTER,
        levanter,
        {"peak": 0.3, "steps": 60, "warmup": 7, "decay": 20, "lr_schedule": "cosine"},
    ),
    "Levanter cycles": (
        LEVANTER,
        levanter,
        {
            "peak": 0.3,
            "steps": 60,
            "warmup": 7,
            "decay": 6,
            "lr_schedule": "linear",
            "cycles": [20, 44],
            "rewarmup": 4,
        },
    ),
    "Levanter cycles without a second warm-up": (
        LEVANTER,
        levanter,
        {"peak": 0.3, "steps": 60, "warmup": 7, "decay": 0.25, "lr_schedule": "cosine", "cycles": [20, 44]},
    ),
    "Levanter inv_sqrt": (
        LEVANTER,
        levanter,
        {
            "peak": 0.3,
            "steps": 11_000,
            "warmup": 30,
            "decay": None,
            "lr_schedule": "inv_sqrt",
            "min_lr_ratio": 0.0,
        },
    ),
    **{
        f"MaxText WSD, {style.lower()}": (
            MAXTEXT,
            maxtext,
            {
                "learning_rate": 0.3,
                "learning_rate_final_fraction": 0.1,
                "learning_rate_schedule_steps": 60,
                "steps": 66,
                "warmup_steps_fraction": 0.1,
                "wsd_decay_steps_fraction": 0.25,
                "wsd_decay_style": style,
            },
        )
        for style in ("LINEAR", "COSINE")
    },
    "big_vision rsqrt": (
        BIG_VISION,
        big_vision,
        {
            "total_steps": 64,
            "base": 0.3,
            "decay_type": "rsqrt",
            "timescale": 12,
            "warmup_steps": 8,
            "cooldown_steps": 16,
        },
    ),
}


def record(directory):
    """Of each case its settings, and what it gives at some counts."""
    made = {repository: definitions(directory, repository) for repository in SOURCES}
    counts = {name: [*COUNTS, 9_998, 10_001, 10_500] if name == "Levanter inv_sqrt" else [*COUNTS] for name in CASES}
    return {
        name: {
            "source": f"{repository}@{SOURCES[repository][0]}",
            "settings": settings,
            "counts": counts[name],
            "rates": [float(schedule(count)) for count in counts[name]],
        }
        for name, (repository, build, settings) in CASES.items()
        for schedule in [build(made[repository], **settings)]
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with jax.enable_x64(True):
        FILE.write_text(json.dumps(record(pathlib.Path(sys.argv[1]))) + "\n")
