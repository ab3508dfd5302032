"""What the answers to designed gradients tell of an optimizer: its averages, their order, corrections, epsilon, decay.

The experiments are made on one number. Let `u_t` be the update, `P_t` that of gradients which are all the same, `G`,
so large that epsilon is nothing beside it. While all magnitudes are `G` a denominator does not depend on the signs:

- `kernel[t, s]`, half of what a sign turned at `s` does to `u_t`, is the weight that the first moment gives `g_s`;
- a last sign turned, with any magnitudes before it, shows the denominator itself, for the numerator's part is known.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adam_tx.probes.signs import sign_decays
from adam_tx.probes.subject import Subject

Array = NDArray[np.float64]
STEPS = 12
LARGE = 1e10
FACTOR = 1e3
SIZES = np.logspace(-24, 4, 29)
"""Of gradients, among which an epsilon shows."""
DECAYED = (1.0, 2.0, -1.0)
EXACT = 1e-9
"""How nearly two numbers agree that rounding alone tells apart."""


class Epsilon(NamedTuple):
    """An epsilon.

    Attributes:
      place: "outside" or "inside" of the root, or "floor" where it is the least denominator.
      corrected: whether it is added to the corrected root, which the paper does.
      value: its size; inside of the root its square.
    """

    place: str
    corrected: bool
    value: float


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The parts of an optimizer, as far as its answers show them; None and nan where they do not.

    Attributes:
      degree: the power of the gradient's size that an update follows: 1 for SGD, 0 for Adam.
      turns: whether the update turns with the gradient's sign.
      uphill: whether it goes up the gradient.
      linear: whether signs are summed: the numerator is a weighted sum, the denominator blind to signs.
      order: "momentum first" as in Adam, "root first" as in LaProp.
      second: what is divided by: an "average", a "sum", a "maximum", "earlier gradients", "nothing"; or "sign".
      root: whether the root of the squares is taken.
      b1: the decay of the first moment, from how the weight of a gradient fades.
      b2: that of the second.
      ahead: how much more the newest gradient weighs than in an average: 0 for none, above for Nesterov's look-ahead.
      first_correction: the power of `1 - b1^t` that the steps follow: 0 corrected, 1 not corrected.
      second_correction: that of `1 - b2^t`: 0 corrected, -0.5 not corrected.
      learning_rate: the step after many equal gradients.
      epsilon: where it stands, and its size; None for none.
      decay: "none", "decoupled", "in the gradient", "cautious", or "otherwise" where updates depend on the parameters.
      weight_decay: what a parameter loses each step, as a share of it; in the gradient a first guess.
      stale_decay: whether a decoupled decay is that of an earlier step's parameters.
      plain: `P_t`.
    """

    degree: float
    turns: bool
    uphill: bool
    linear: bool
    order: str | None
    second: str
    root: bool
    b1: float
    b2: float
    ahead: float
    first_correction: float
    second_correction: float
    learning_rate: float
    epsilon: Epsilon | None
    decay: str
    weight_decay: float
    stale_decay: bool
    plain: Array

    def clipped(self) -> Anatomy:
        """What is left of it where large gradients are clipped: what those of one size show."""
        unknown = float("nan")
        corrections = {"first_correction": unknown, "second_correction": unknown}
        return dataclasses.replace(self, second="average", root=True, order="momentum first", b2=unknown, **corrections)


class Experiments:
    """Gradients and parameters of experiments by name, and then the answers to them."""

    def __init__(self) -> None:
        self._index: dict[object, int] = {}
        self._grads: list[Array] = []
        self._params: list[Array] = []
        self.answers = np.zeros(0)

    def add(self, key: object, grads: Array, params: Array | float = 0.0) -> None:
        """An experiment: a gradient and a parameter for each step."""
        self._index[key] = len(self._grads)
        self._grads.append(np.broadcast_to(grads, STEPS))
        self._params.append(np.broadcast_to(np.asarray(params, float), STEPS))

    def make(self, subject: Subject) -> None:
        """All of them at once."""
        grads, params = (np.stack(rows)[..., None] for rows in (self._grads, self._params))
        self.answers = subject.held({"one": grads}, {"one": params}, "float64")["one"][..., 0]

    def __getitem__(self, key: object) -> Array:
        return self.answers[self._index[key]]


def anatomy_of(subject: Subject) -> Anatomy:
    """Make all experiments with a subject, and read them."""
    made = Experiments()
    _design(made)
    with np.errstate(all="ignore"):
        made.make(subject)
        found = _read(made)
        if found.second != "sign":
            return found
        b1, b2 = sign_decays(subject)
        return dataclasses.replace(found, b1=b1, b2=b2)


def _design(made: Experiments) -> None:
    ones = np.ones(STEPS)
    made.add("plus", LARGE * ones)
    made.add("minus", -LARGE * ones)
    for at in range(STEPS):
        made.add(("turned", at), LARGE * _with(ones, {at: -1.0}))
    made.add("signs", LARGE * _SIGNS)
    for places in (*((at,) for at in range(STEPS)), (0, 1), (0, STEPS - 1)):
        sizes = LARGE * _with(ones, dict.fromkeys(places, FACTOR))
        made.add(("larger", places), sizes)
        made.add(("larger, last turned", places), _with(sizes, {STEPS - 1: -sizes[-1]}))
    made.add("larger, turned", LARGE * _with(ones, {0: -FACTOR}))
    for size in SIZES:
        made.add(("size", size), size * ones)
    made.add("unmoved", ones)
    for weight in DECAYED:
        made.add(("weight", weight), ones, weight)
    for weight in np.logspace(-4, 0, 9):
        made.add(("first", weight), _with(ones, {0: weight}))
    made.add("weight at first", ones, _with(np.zeros(STEPS), {0: 1.0}))
    made.add("first, weight", _with(ones, {0: 0.0}), _with(np.zeros(STEPS), {0: 1.0}))


_SIGNS = np.array([1, -1, -1, 1, 1, 1, -1, 1, -1, -1, 1, 1.0])


def _with(values: Array, at: dict[int, float]) -> Array:
    changed = values.copy()
    for place, value in at.items():
        changed[place] = value
    return changed


def _read(made: Experiments) -> Anatomy:
    plain = made["plus"]
    kernel = np.array([(plain - made["turned", at]) / 2.0 for at in range(STEPS)]).T
    second, root, b2 = _second_moment(made, kernel)
    b1 = _fading(kernel[-1])
    order = _order(made, kernel, second)
    if order == "root first" and not np.isfinite(b1):  # each gradient is divided by the root of its time
        b1 = _fading(kernel[-1] / np.diag(kernel))
    degree = np.log(plain[-1] / made["size", SIZES[-1]][-1]) / np.log(LARGE / SIZES[-1])
    first_correction, second_correction, rate = _corrections(plain, b1, b2)
    ahead = kernel[-1, -1] * b1 / kernel[-1, -2] - 1.0 if b1 > EXACT else 0.0
    decay, weight_decay, stale = _decay(made, float(np.round(degree, 3)))
    return Anatomy(
        degree=float(np.round(degree, 3)),
        turns=_agree(plain, -made["minus"]),
        uphill=bool(plain[-1] > 0),
        linear=_agree(kernel @ _SIGNS, made["signs"]),
        order=order,
        second=second,
        root=root,
        b1=b1,
        b2=b2,
        ahead=0.0 if abs(ahead) < EXACT else float(ahead),
        first_correction=first_correction,
        second_correction=second_correction,
        learning_rate=rate,
        epsilon=_epsilon(made, plain, b2) if abs(degree) < 0.01 else None,
        decay=decay,
        weight_decay=weight_decay,
        stale_decay=stale,
        plain=plain,
    )


def _agree(one: Array, other: Array, tolerance: float = EXACT) -> bool:
    return bool(np.all(np.abs(one - other) <= tolerance * np.max(np.abs(other))))


def _fading(weights: Array) -> float:
    """The ratio of a weight to the next one, of the oldest; nan if they do not fade in a constant ratio."""
    if abs(weights[0]) <= EXACT * np.max(np.abs(weights)):
        return 0.0 if np.all(np.abs(weights[:-1]) <= EXACT * abs(weights[-1])) else float("nan")
    ratios = weights[1:-2] / weights[2:-1]  # the first gradient and the newest may have weights of their own
    return float(ratios[0]) if np.ptp(ratios) <= 1e-7 * abs(ratios[0]) else float("nan")


def _second_moment(made: Experiments, kernel: Array) -> tuple[str, bool, float]:
    """What is divided by, whether by its root, and its decay."""

    def denominator(places: tuple[int, ...]) -> float:
        last = FACTOR if STEPS - 1 in places else 1.0
        turned = made["larger", places] - made["larger, last turned", places]
        return float(2.0 * kernel[-1, -1] * last / turned[-1])

    signs = np.abs([made["signs"], *(made["larger, last turned", (at,)] for at in range(STEPS))])
    if np.all(signs == signs[0, 0]):
        return "sign", True, float("nan")
    alone = np.array([denominator((at,)) for at in range(STEPS)])
    pair = denominator((0, 1))
    if not np.all(np.isfinite(alone)) or abs(kernel[-1, -1]) < 1e-300:
        return "unknown", True, float("nan")
    if np.all(np.abs(alone - 1.0) < EXACT):
        return "nothing", True, float("nan")
    for power, root in ((2.0, True), (1.0, False)):
        shares = alone**power - 1.0
        if abs(pair**power - 1.0 - shares[0] - shares[1]) <= 1e-8 * abs(pair**power - 1.0):
            if abs(shares[-1]) <= EXACT * np.max(np.abs(shares)):
                return "earlier gradients", root, float(shares[1] / shares[2])
            if abs(shares[0] / shares[1] - 1.0) < 1e-7 and abs(shares[1] / shares[-1] - 1.0) < 1e-7:
                return "sum", root, 1.0
            return "average", root, _fading(shares)
    return "maximum", True, float("nan")


def _order(made: Experiments, kernel: Array, second: str) -> str | None:
    """Whether an early gradient is divided by today's root, or by that of its own time."""
    if second == "nothing" or abs(kernel[-1, 0]) <= EXACT * abs(kernel[-1, -1]):
        return None
    large = (made["larger", (0,)] - made["larger, turned"])[-1] / 2.0
    alone = (made["larger", (0,)] - made["larger, last turned", (0,)])[-1] / 2.0
    together = abs(large / kernel[-1, 0] * kernel[-1, -1] / alone / FACTOR - 1.0)
    return "momentum first" if together < 1e-6 else "root first"


def _corrections(plain: Array, b1: float, b2: float) -> tuple[float, float, float]:
    """The powers of both weights that the steps follow, and the step where both are 1."""
    t = np.arange(1, STEPS + 1)
    columns = [np.log1p(-(b**t)) if 0.0 < b < 1.0 else np.zeros(STEPS) for b in (b1, b2)]
    used = [i for i, column in enumerate(columns) if np.any(column)]
    if b1 == b2:
        used = used[:1]
    if not np.all(np.isfinite(plain)) or not plain.all():
        return float("nan"), float("nan"), float(abs(plain[-1]))
    design = np.stack([np.ones(STEPS), *(columns[i] for i in used)]).T
    powers, *_ = np.linalg.lstsq(design, np.log(np.abs(plain)), rcond=None)
    if np.max(np.abs(design @ powers - np.log(np.abs(plain)))) > 1e-8:
        return float("nan"), float("nan"), float(abs(plain[-1]))
    found = [0.0, 0.0]
    for i, power in zip(used, powers[1:], strict=True):
        found[i] = float(np.round(power, 5)) + 0.0
    return found[0], found[1], float(np.exp(powers[0]))


def _epsilon(made: Experiments, plain: Array, b2: float) -> Epsilon | None:
    """The place of epsilon by how steps fade with the gradient's size, at two times, which tell if it is corrected."""
    early, late = STEPS - 5, STEPS - 1
    shrunk = np.array([plain / made["size", size] for size in SIZES])
    seen = (shrunk[:, late] > 1.0 + 1e-3) & (shrunk[:, late] < 1e6)
    if not np.any(seen):
        return None
    sizes = SIZES[seen]
    by_place = {
        "outside": (shrunk[seen] - 1.0) * sizes[:, None],
        "inside": np.sqrt(np.abs(shrunk[seen] ** 2 - 1.0)) * sizes[:, None],
        "floor": shrunk[seen] * sizes[:, None],
    }
    place, values = min(by_place.items(), key=lambda item: np.ptp(item[1][:, late]) / np.mean(item[1][:, late]))
    value, before = np.median(values[:, late]), np.median(values[:, early])
    raw = abs(value / before - 1.0) > 1e-7 and 0.0 < b2 < 1.0
    if raw:
        value *= np.sqrt(-np.expm1(STEPS * np.log(b2)))
    return Epsilon(place, not raw, float(value**2 if place == "inside" else value))


def _decay(made: Experiments, degree: float) -> tuple[str, float, bool]:
    """What the parameters do to the updates, how much, and whether those of earlier steps do."""
    lost = {weight: made["unmoved"] - made["weight", weight] for weight in DECAYED}
    largest = np.max(np.abs(made["unmoved"]))
    if all(np.max(np.abs(change)) <= 1e-15 * max(largest, 1.0) for change in lost.values()):
        return "none", 0.0, False
    later = (made["unmoved"] - made["weight at first"])[1:]
    stale = bool(np.max(np.abs(later)) > EXACT * np.max(np.abs(lost[1.0])))
    if _agree(lost[2.0], 2.0 * lost[1.0]) and _agree(lost[-1.0], -lost[1.0]):
        if degree == 1.0 and stale:
            return "in the gradient", float(made["weight", 1.0][0] / made["unmoved"][0] - 1.0), False
        return "decoupled", float(lost[1.0][0 if stale else -1]), stale
    for sign in (1.0, -1.0):
        if not np.any(lost[-sign]) and np.ptp(lost[sign]) <= EXACT * abs(lost[sign][-1]):
            return "cautious", float(sign * lost[sign][-1]), False
    weights = np.logspace(-4, 0, 9)
    second = np.array([made["first", weight][1] for weight in weights])
    order = np.argsort(second)
    guess = np.exp(np.interp(made["first, weight"][1], second[order], np.log(weights)[order]))
    return ("in the gradient" if 1.1e-4 < guess < 0.9 else "otherwise"), float(guess), False
