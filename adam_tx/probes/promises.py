"""What an optimizer should keep to whatever it is, each with the number that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from adam_tx.probes.subject import Subject, Trees

Array = NDArray[np.float64]
STEPS = 40
LONG = 100_000
MID = 4_000
BURST = 20
DTYPES = ("float64", "float32", "bfloat16")


class Promise(NamedTuple):
    """One thing that an optimizer keeps to, or does not.

    Attributes:
      name: what is promised.
      kept: whether it is; None where it could not be tried.
      shown: the numbers that show it.
    """

    name: str
    kept: bool | None
    shown: str


def of_answers(subject: Subject, long: int = LONG) -> Iterator[Promise]:
    """What the answers in three dtypes show."""
    short = {dtype: subject.held(*_short(), dtype)["one"][..., 0] for dtype in DTYPES}
    with np.errstate(all="ignore"):
        yield from _of_short(short)
    lasting = {dtype: subject.held(*_lasting(long), dtype)["one"][..., 0] for dtype in DTYPES}
    yield from _lasts(lasting, long)


def _of_short(short: Mapping[str, Array]) -> Iterator[Promise]:
    yield from _follows(short)
    yield _finite("zero gradients give finite updates", short, ("zero", "zero after one"))
    yield _huge(short)
    yield _recovers(short)
    yield _finite("gradients of 1e-30 give finite updates", short, ("tiny", "tiny after one"))


_EXPERIMENTS = ("random", "zero", "zero after one", "huge", "huge after one", "tiny", "tiny after one", "one")


def _short() -> tuple[Trees, Trees]:
    random = np.random.default_rng(7).standard_normal(STEPS) + 0.3
    ones, first = np.ones(STEPS), np.arange(STEPS) == 0
    third = np.arange(STEPS) == 3
    rows = [
        np.asarray(jnp.asarray(random, jnp.bfloat16), np.float64),
        0.0 * ones,
        1.0 * first,
        1e30 * ones,
        np.where(third, 1e30, 1.0),
        1e-30 * ones,
        np.where(first, 1.0, 1e-30),
        ones,
    ]
    return _experiments(rows)


def _lasting(long: int) -> tuple[Trees, Trees]:
    """1 and 1/2 in turn: of equal ones nothing but rounding is left where an average is subtracted."""
    usual = np.where(np.arange(long) % 2, 0.5, 1.0)
    return _experiments([usual, np.where(np.arange(long) < BURST, 64.0, usual), 0.0 * usual])


def _experiments(rows: Sequence[Array]) -> tuple[Trees, Trees]:
    grads = np.stack(rows)[..., None]
    return {"one": grads}, {"one": np.zeros_like(grads)}


def _follows(short: Mapping[str, Array]) -> Iterator[Promise]:
    exact = short["float64"][0]
    scale = np.max(np.abs(exact)) or 1.0
    noisy = np.any(short["float64"][_EXPERIMENTS.index("zero")])
    for dtype, most in (("float32", 1e-3), ("bfloat16", 0.05)):
        off = float(np.max(np.abs(short[dtype][0] - exact)) / scale)
        shown = "it moves without gradients" if noisy else f"{off:.1e} of the step after {STEPS} steps"
        yield Promise(f"{dtype} follows float64", None if noisy else off <= most, shown)


def _finite(name: str, short: Mapping[str, Array], of: tuple[str, ...], dtypes: Sequence[str] = DTYPES) -> Promise:
    rows = [_EXPERIMENTS.index(experiment) for experiment in of]
    bad = [dtype for dtype in dtypes if not np.all(np.isfinite(short[dtype][rows]))]
    if bad:
        return Promise(name, False, f"NaN or infinity in {', '.join(bad)}")
    largest = max(float(np.max(np.abs(short[dtype][rows]))) for dtype in dtypes)
    return Promise(name, True, f"at most {largest:.3g}")


def _huge(short: Mapping[str, Array]) -> Promise:
    """Whether gradients whose squares are no numbers make steps as large as where they are."""
    huge = _EXPERIMENTS.index("huge")
    exact, single = (float(np.max(np.abs(short[dtype][huge]))) for dtype in DTYPES[:2])
    share = single / exact if exact else 1.0
    return Promise("float32: a gradient of 1e30 makes no larger step", share < 2.0, f"{share:.3g} of float64's")


def _recovers(short: Mapping[str, Array]) -> Promise:
    after = _EXPERIMENTS.index("huge after one")
    exact, single = (float(short[dtype][after, -1]) for dtype in DTYPES[:2])
    share = single / exact if exact else 1.0
    shown = f"{share:.3g} of float64's, {STEPS - 4} later"
    return Promise("float32: steps go on after a gradient of 1e30", 0.1 < share < 10.0, shown)


def _lasts(lasting: Mapping[str, Array], long: int) -> Iterator[Promise]:
    """The share of the step of float64, after many gradients of a size, and after a burst of large ones."""
    middle = min(MID, long) - 1
    for name, dtype, experiment, at, most in (
        (f"float32: after {long:,} gradients of a size the step is right", "float32", 0, long - 1, 2e-3),
        (f"bfloat16: after {middle + 1:,} gradients of a size the step is right", "bfloat16", 0, middle, 0.1),
        (f"bfloat16: {middle + 1:,} steps later large gradients are forgotten", "bfloat16", 1, middle, 0.2),
    ):
        exact, step = (float(lasting[kind][experiment, at]) for kind in ("float64", dtype))
        if exact == 0.0 or np.any(lasting["float64"][2]):
            yield Promise(name, None, "no step is left" if exact == 0.0 else "it moves without gradients")
        else:
            yield Promise(name, abs(step / exact - 1.0) < most, f"{step / exact:.6g} of the step of float64")


def counted(name: str, advance: Callable[[str, int], Mapping[str, tuple[float, str]]], dtype: str) -> Promise:
    """Whether every count goes on.

    `advance` sets all to a number and makes two updates, and says what they are then, and of what dtype.
    """
    stuck: list[str] = []
    seen: dict[str, str] = {}
    for past in (256, 65_536, 2**24):
        for path, (value, kept_in) in advance(dtype, past).items():
            seen[path] = kept_in
            if value != past + 2 and path not in stuck:
                stuck.append(f"{path} {kept_in} stops at {past:,}")
    if not seen:
        return Promise(name, None, "no count in the state")
    return Promise(name, not stuck, "; ".join(stuck[:2]) or ", ".join(f"{p} {d}" for p, d in seen.items()))
