"""What `audit` says of Optax's optimizers, ours, PyTorch's, and of planted mistakes: `python benchmarks/audit.py`.

Each row has what must be said, written down before: the dialect, or None where no dialect is to be named; for a
mistake the words that must stand in the printed audit. With `--out FILE` the rows are written, those that are there
and were not tried, such as PyTorch's where it is not installed, kept.
"""

import argparse
import importlib
import importlib.util
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from smallest import add_smallest

import adam_tx
from adam_tx import interop
from adam_tx.probes.report import Audit

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import planted

RESULTS = pathlib.Path(__file__).parent / "results" / "audit.json"
W, L2 = " with decoupled weight decay", " with weight decay in the gradient"
Case = tuple[Callable[[], Any], str | None]
"""What is audited, and the dialect that must be found."""

OPTAX: dict[str, Case] = {
    "adabelief": (lambda: optax.adabelief, "adabelief"),
    "adadelta": (lambda: optax.adadelta(1.0), "adadelta"),
    "adafactor": (lambda: optax.adafactor(1e-3), "adafactor, decay in float32"),
    "adagrad": (lambda: optax.adagrad, "adagrad"),
    "adam": (lambda: optax.adam, "adam"),
    "adam, eps_root": (lambda: optax.adam(1e-3, eps=0.0, eps_root=1e-7), "adam, epsilon inside the root"),
    "adam, clipped": (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), "adam"),
    "adam, warm-up": (lambda: optax.adam(optax.linear_schedule(0.0, 1e-3, 10)), "adam"),
    "adam, injected": (lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), "adam"),
    "adamax": (lambda: optax.adamax, "adamax"),
    "adamaxw": (lambda: optax.adamaxw, f"adamax{W}"),
    "adamw": (lambda: optax.adamw, f"adam{W}"),
    "adamw, cosine": (lambda: optax.adamw(optax.cosine_decay_schedule(1e-3, 100), weight_decay=0.01), f"adam{W}"),
    "amsgrad": (lambda: optax.amsgrad, "amsgrad, of the largest corrected moment"),
    "fromage": (lambda: optax.fromage(1e-2), None),
    "lamb": (lambda: optax.lamb(1e-3, weight_decay=0.1), "lamb"),
    "lars": (lambda: optax.lars(1e-2), None),
    "lion": (lambda: optax.lion, f"lion{W}"),
    "lion, 0.95, 0.98": (lambda: optax.lion(1e-4, 0.95, 0.98, weight_decay=0.1), f"lion{W}"),
    "nadam": (lambda: optax.nadam, "nadam"),
    "nadamw": (lambda: optax.nadamw, f"nadam{W}"),
    "noisy_sgd": (lambda: optax.noisy_sgd(1e-2, key=0), None),
    "novograd": (lambda: optax.novograd(1e-3, weight_decay=0.01), "novograd"),
    "optimistic_gradient_descent": (lambda: optax.optimistic_gradient_descent(1e-2), None),
    "optimistic_adam_v2": (lambda: optax.optimistic_adam_v2(1e-3), None),
    "radam": (lambda: optax.radam, "radam"),
    "rmsprop": (lambda: optax.rmsprop, "rmsprop, epsilon inside"),
    "rmsprop, momentum": (lambda: optax.rmsprop(1e-3, momentum=0.9), "rmsprop, with momentum, epsilon inside"),
    "rmsprop, centered": (lambda: optax.rmsprop(1e-3, centered=True), "rmsprop, centered, epsilon inside"),
    "rprop": (lambda: optax.rprop(1e-3), "rprop"),
    "sgd": (lambda: optax.sgd, "sgd"),
    "sgd, momentum": (lambda: optax.sgd(0.1, 0.9), "sgd with momentum"),
    "sgd, Nesterov's": (lambda: optax.sgd(0.1, 0.9, nesterov=True), "sgd with momentum, Nesterov's"),
    "sign_sgd": (lambda: optax.sign_sgd, "sign descent"),
    "sm3": (lambda: optax.sm3(1e-2), None),
    "yogi": (lambda: optax.yogi, "yogi, momentum from 1e-6"),
    "contrib.ademamix": (lambda: optax.contrib.ademamix(1e-3), "ademamix"),
    "contrib.adopt": (lambda: optax.contrib.adopt(1e-3), "adopt"),
    "contrib.cocob": (lambda: optax.contrib.cocob(), None),
    "contrib.dadapt_adamw": (lambda: optax.contrib.dadapt_adamw(), None),
    "contrib.dog": (lambda: optax.contrib.dog(1.0), None),
    "contrib.dowg": (lambda: optax.contrib.dowg(), None),
    "contrib.muon": (lambda: optax.contrib.muon(1e-3), "muon"),
    "contrib.prodigy": (lambda: optax.contrib.prodigy(), None),
    "contrib.schedule_free_adamw": (lambda: optax.contrib.schedule_free_adamw(1e-3), "schedule_free_adamw"),
}
OURS: dict[str, Case] = {
    "adabelief": (lambda: adam_tx.adabelief, "adabelief"),
    "adafactor": (lambda: adam_tx.adafactor(1e-2), "adafactor"),
    "adagrad": (lambda: adam_tx.adagrad, "adagrad"),
    "adam": (lambda: adam_tx.adam, "adam"),
    "adam, no epsilon": (lambda: adam_tx.adam(1e-3, eps=0.0), "adam"),
    "adam, no momentum": (lambda: adam_tx.adam(1e-3, b1=0.0), "adam"),
    "adam, bfloat16 moments": (lambda: adam_tx.adam(1e-3, b2=0.95, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16), None),
    "adam_atan2": (lambda: adam_tx.adam_atan2, "adam_atan2"),
    "adam_mini": (lambda: adam_tx.adam_mini(1e-3, weight_decay=0.1), f"adam_mini{W}"),
    "adamax": (lambda: adam_tx.adamax, "adamax"),
    "adamaxw": (lambda: adam_tx.adamaxw, f"adamax{W}"),
    "adamw": (lambda: adam_tx.adamw, f"adam{W}"),
    "ademamix": (lambda: adam_tx.ademamix, "ademamix"),
    "adopt": (lambda: adam_tx.adopt, "adopt"),
    "amsgrad": (lambda: adam_tx.amsgrad, "amsgrad, of the largest corrected moment"),
    "amsgrad, raw": (lambda: adam_tx.amsgrad(1e-3, max_of="raw"), "amsgrad, of the largest moment"),
    "cautious": (lambda: adam_tx.cautious(adam_tx.adamw(1e-3)), "cautious adamw"),
    "guard": (lambda: adam_tx.guard(adam_tx.adam(1e-3)), "adam"),
    "lamb": (lambda: adam_tx.lamb, "lamb"),
    "laprop": (lambda: adam_tx.laprop, "laprop"),
    "lion": (lambda: adam_tx.lion, f"lion{W}"),
    "mars_adamw": (lambda: adam_tx.mars_adamw, "mars_adamw"),
    "muon": (lambda: adam_tx.muon, "muon"),
    "nadam": (lambda: adam_tx.nadam, "nadam"),
    "nadam, growing": (lambda: adam_tx.nadam(1e-3, momentum_decay=0.004), "nadam, growing momentum"),
    "nadamw": (lambda: adam_tx.nadamw, f"nadam{W}"),
    "novograd": (lambda: adam_tx.novograd, "novograd"),
    "radam": (lambda: adam_tx.radam, "radam"),
    "rmsprop": (lambda: adam_tx.rmsprop, "rmsprop, epsilon inside"),
    "schedule_free_adamw": (lambda: adam_tx.schedule_free_adamw(1e-3), "schedule_free_adamw"),
    "sgd": (lambda: adam_tx.sgd(0.1, 0.9, dampening=0.1), "sgd with dampened momentum"),
    "soap": (lambda: adam_tx.soap, "soap"),
    "stable_adamw": (lambda: adam_tx.stable_adamw, "stable_adamw"),
    "yogi": (lambda: adam_tx.yogi, "yogi"),
}
TORCH: list[tuple[str, dict[str, Any], str | None]] = [
    ("Adadelta", {}, "adadelta"),
    ("Adafactor", {}, "adafactor, last axes"),
    ("Adagrad", {}, "adagrad, from zero"),
    ("Adam", {}, "adam"),
    ("Adam", {"weight_decay": 0.1}, f"adam{L2}"),
    ("Adam", {"amsgrad": True}, "amsgrad, of the largest moment"),
    ("AdamW", {}, f"adam{W}"),
    ("Adamax", {}, "adamax"),
    ("ASGD", {}, f"sgd{W}"),
    ("NAdam", {}, "nadam, growing momentum"),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, f"nadam, growing momentum{W}"),
    ("RAdam", {}, "radam, epsilon before the correction"),
    ("RMSprop", {}, "rmsprop, epsilon outside"),
    ("RMSprop", {"momentum": 0.9}, "rmsprop, with momentum, epsilon outside"),
    ("RMSprop", {"centered": True}, "rmsprop, centered, epsilon outside"),
    ("Rprop", {}, None),
    ("SGD", {"lr": 0.1}, "sgd"),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "sgd with momentum, Nesterov's"),
    (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
        f"sgd with dampened momentum{L2}",
    ),
]


class Row(NamedTuple):
    """What was said of one subject, and whether that is right."""

    subject: str
    right: bool
    said: str
    difference: float | None
    findings: list[str]
    broken: list[str]
    seconds: float


def row_of(subject: str, audit: Callable[[], Audit], expected: str | None, words: tuple[str, ...] = ()) -> Row:
    """One subject: the right dialect and no finding; of a mistake all words."""
    began = time.perf_counter()
    found = audit()
    seconds = round(time.perf_counter() - began, 2)
    printed = " ".join(str(found).split())
    right = all(word in printed for word in words) if words else found.dialect == expected and not found.findings
    difference = float(f"{found.difference:.2g}") if math.isfinite(found.difference) else None
    broken = [f"{promise.name}: {promise.shown}" for promise in found.broken]
    said = found.dialect or (f"none; nearest {found.nearest}" if found.nearest else "none")
    return Row(subject, right, said, difference, list(found.findings), broken, seconds)


def rows(only: str | None, *, promises: bool) -> Iterator[Row]:
    """All subjects whose names begin so."""
    for library, cases in (("optax", OPTAX), ("adam_tx", OURS)):
        for name, (make, expected) in cases.items():
            subject = f"{library}.{name}"
            if subject.startswith(only or ""):
                yield row_of(subject, lambda make=make: adam_tx.audit(make(), promises=promises), expected)
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        for name, settings, expected in TORCH:
            told = ", ".join(f"{key}={value}" for key, value in settings.items())
            subject = f"torch.optim.{name}({told})"
            if subject.startswith(only or ""):
                kind = getattr(torch.optim, name)
                audit = lambda k=kind, s=settings: interop.torch.audit(k, promises=promises, **s)  # noqa: E731
                yield row_of(subject, audit, expected)
    for name, (make, words) in planted.MISTAKES.items():
        subject = f"mistake: {name}"
        if subject.startswith(only or ""):
            with_promises = promises or "bfloat16" in name
            yield row_of(subject, lambda m=make, p=with_promises: adam_tx.audit(m(), promises=p), None, words)
    if "mistake: decay".startswith(only or ""):
        words = ("Weight decay is not multiplied by the learning rate",)
        audit = lambda: adam_tx.audit(planted.decay_without_rate, promises=promises)  # noqa: E731
        yield row_of("mistake: decay not times the rate", audit, None, words)


def main() -> int:
    """Audit all, print a line each, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="subjects whose names begin so")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the rows")
    add_smallest(parser, only="optax.adamw", out=None)
    options = parser.parse_args()
    found = []
    for row in rows(options.only, promises=True):
        found.append(row)
        print(f"{'right' if row.right else 'WRONG'} | {row.subject} | {row.said} | {row.difference} | {row.seconds} s")
        for line in (*row.findings, *row.broken):
            print(f"      {line}")
    wrong = [row.subject for row in found if not row.right]
    print(f"{len(found) - len(wrong)} of {len(found)} are right")
    if options.out:
        kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
        tried = {row.subject for row in found}
        written = [row for row in kept if row["subject"] not in tried] + [row._asdict() for row in found]
        command = "python benchmarks/audit.py --out benchmarks/results/audit.json"
        versions = {"jax": jax.__version__, "optax": optax.__version__}
        text = json.dumps({"command": command, "versions": versions, "rows": written}, indent=1)
        options.out.write_text(text + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
