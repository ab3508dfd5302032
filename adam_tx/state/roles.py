"""Roles and keys: what an array of a state is, as an object and as text.

The texts are the public contract: `export_state` gives them, and other frameworks are read into them. Only this file
puts them together and takes them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Averaged = str
"""The kind of what an average is of, "gradient" or "square"; empty for what is no average."""
About = str
"""What an entry says about others: "rate", the constant that their gradient was multiplied by, or "decay"."""
_ROLE = re.compile(r"(.*?)(?:_([2-9]|[1-9][0-9]+))?(?:_of_(.+))?", re.DOTALL)
_KEY = re.compile(r"([^/]*?)(?:\.(rate|decay))?(?:/(.+?))?(?:@((?:codes|scales)\w*))?", re.DOTALL)


class Role(NamedTuple):
    """What an array is, whatever its link or field is called: `mu_2_of_scaled`.

    Attributes:
      base: "mu" for an average of gradients, and so on; see `ROLES`. `<owner>.<field>` for what one link alone has.
      of: what was done to the gradient before; empty for the gradient itself.
      number: from 2 on for all but the fastest of several of a role and parameter.
    """

    base: str
    of: str = ""
    number: int = 1

    def __str__(self) -> str:
        number = f"_{self.number}" if self.number > 1 else ""
        return f"{self.base}{number}_of_{self.of}" if self.of else f"{self.base}{number}"

    @staticmethod
    def parse(text: str) -> Role:
        """The role of this text."""
        found = _ROLE.fullmatch(text)
        assert found is not None  # any text is one
        base, number, of = found.groups(default="")
        return Role(base, of, int(number or 1))

    def marked(self, words: Iterable[str]) -> Role:
        """The role, once more was done to the gradient before."""
        return self._replace(of="_".join([*([self.of] if self.of else []), *words]))

    def part(self, name: str) -> Role:
        """The role of a part of it; it itself where the part has no name."""
        return Role.parse(f"{self}.{name}") if name else self

    def numbered(self, number: int) -> Role:
        """The role of one more of several; the first has no number."""
        return self if number == 1 else Role(str(self._replace(of="")), self.of, number)

    @property
    def unnumbered(self) -> Role:
        """The role without its number: what several have in common."""
        return self._replace(number=1)

    @property
    def without_steps(self) -> Role:
        """The role, had there been no learning rate before."""
        return self._replace(of=self.of.removesuffix("steps").removesuffix("_")) if self.is_of_steps else self

    @property
    def is_of_steps(self) -> bool:
        """Whether the gradient was multiplied by a learning rate before."""
        return self.words[-1:] == ["steps"]

    @property
    def words(self) -> list[str]:
        """What was done to the gradient before, word by word."""
        return self.of.split("_") if self.of else []

    @property
    def owner(self) -> str:
        """The link or wrapper that alone has it; the whole text if there is none."""
        return str(self).partition(".")[0]

    @property
    def field(self) -> str:
        """What its owner calls it."""
        return str(self).rpartition(".")[2]

    @property
    def has_owner(self) -> bool:
        """Whether one link alone has it, so that nothing else is compared to it."""
        return "." in str(self)

    def is_within(self, other: Role) -> bool:
        """Whether it is this other, or a part of it."""
        return self == other or str(self).startswith(f"{other}.")

    @property
    def is_count(self) -> bool:
        """Whether it is a count of updates that parameters share."""
        return self.unnumbered in (COUNT, STEPS)

    @property
    def is_weight(self) -> bool:
        """Whether it is the weight of an average."""
        return self.base.startswith("weight_")

    @property
    def is_basis(self) -> bool:
        """Whether it is a part of the basis that moments are in."""
        return self.has_owner and self.owner == "basis"

    @property
    def known(self) -> Known:
        """What is known of it."""
        first = "_".join(self.words[:1])
        return ROLES.get(Role(self.base)) or ROLES.get(Role(self.base, first)) or Known("whoever declares it")

    @property
    def known_as(self) -> Iterable[Role]:
        """The roles to look for it under: a second count may be the first, and steps the updates that were made."""
        if not self.is_count:
            return (self,)
        return dict.fromkeys((self, self.unnumbered, COUNT if self.unnumbered == STEPS else self.unnumbered))


class Known(NamedTuple):
    """What is known of a role.

    Attributes:
      owner: whose it is.
      power: the power of the gradient that it is of; None if that is not known.
      is_size: whether it has no sign, as a square has none.
    """

    owner: str
    power: int | None = None
    is_size: bool = False


class Key(NamedTuple):
    """The name of an entry: `mu/encoder/kernel`, `mu.decay`, `mu/encoder/kernel@codes_by_128`.

    Attributes:
      role: what it is, or what it is about.
      path: that of its parameter; empty for what all parameters share, and where the tree is one parameter.
      about: what it says about the entries of its role; empty if it is such an entry itself.
      stored: of an array as it is stored, what it holds and how; empty for its numbers.
    """

    role: Role
    path: str = ""
    about: About = ""
    stored: str = ""

    def __str__(self) -> str:
        marked = ((".", self.about), ("/", self.path), ("@", self.stored))
        return f"{self.role}{''.join(mark + text for mark, text in marked if text)}"

    @staticmethod
    def parse(text: str, own: Iterable[Role] = ()) -> Key:
        """The key of this text.

        Args:
          text: the text.
          own: roles that are there. A slot may be called "rate", so an entry of such a role is not about another;
            and a figure of a group has a slash in its name.
        """
        if (whole := Role.parse(text)) in own:
            return Key(whole)
        if (found := _KEY.fullmatch(text)) is None:
            return Key(whole)
        role, suffix, path, stored = found.groups(default="")
        whole = Role.parse(role).part(suffix)
        if suffix and (whole in own or any(whole.is_within(recipe) for recipe in RECIPES.values())):
            return Key(whole, path, "", stored)
        return Key(Role.parse(role), path, suffix, stored)

    @property
    def shared(self) -> Key:
        """The key of what all parameters share."""
        return self._replace(path="", stored="")


ROLES: dict[Role, Known] = {}
"""The roles that several links or frameworks have in common."""


def _role(text: str, owner: str, power: int | None = None, *, is_size: bool = False) -> Role:
    role = Role.parse(text)
    ROLES[role] = Known(owner, power, is_size)
    return role


COUNT = _role("count", "what counts updates")
STEPS = _role("steps", "what may skip updates, where count is of those made")
MU = _role("mu", "Adam and most others", 1)
NU = _role("nu", "Adam and most others; of blocks, Adam-mini and NovoGrad", 2, is_size=True)
NU_MAX = _role("nu_max", "AMSGrad", 2, is_size=True)
NU_INF = _role("nu_inf", "AdaMax", 1, is_size=True)
NU_ROW = _role("nu_row", "Adafactor", 2, is_size=True)
NU_COL = _role("nu_col", "Adafactor", 2, is_size=True)
NU_YOGI = _role("nu_yogi", "Yogi", 2, is_size=True)
NU_BELIEF = _role("nu_belief", "AdaBelief", 2, is_size=True)
SUM_OF_SQUARES = _role("sum_of_squares", "Adagrad", 2, is_size=True)
MEAN = _role("mean", "centered RMSprop", 1)
TRACE = _role("trace", "SGD, RMSprop and others with a momentum that is no average", 1)
PREVIOUS_GRADIENT = _role("previous_gradient", "MARS", 1)
START = _role("start", "what pulls parameters to where they started")
RESIDUAL = _role("residual", "parameters that have fewer bits than their updates")
WEIGHT_MU = _role("weight_mu", "what debiases an average of gradients")
WEIGHT_NU = _role("weight_nu", "what debiases an average of squares")
WEIGHT_MU_READ = _role("weight_mu_read", "NAdam, of the decays that it looks ahead with")
WEIGHT_NU_LOOK_AHEAD = _role("weight_nu_look_ahead", "AdaBelief, of the decays that it looks ahead with")
GATHERED = _role("MultiSteps.acc_grads", "what gathers gradients of several steps for one update", 1)
GATHERED_STEPS = _role("MultiSteps.mini_step", "how many steps are gathered")
GATHERED_UPDATES = _role("MultiSteps.gradient_step", "how many updates were made of them")
AVERAGES: Mapping[str, Role] = {"gradient": MU, "square": NU}
"""What an average of a kind is called."""
RECIPES: Mapping[str, Role] = {
    "inject_hyperparams": Role("inject_hyperparams.hyperparams"),
    "schedule_free": Role("schedule_free.b1"),
    "scale_by_muon": Role("scale_by_muon.ns_coeffs"),
}
"""Where a recipe's own numbers stand in the states of Optax, by the function that makes them."""
COUNTS: Mapping[Role, tuple[Role, ...]] = {
    Role("inject_hyperparams.count"): (STEPS, COUNT),
    Role("inject_hyperparams.hyperparams_states"): (Role("inject_hyperparams.count"), STEPS, COUNT),
    GATHERED_UPDATES: (STEPS, COUNT),
}
"""What counts updates in the states of Optax's wrappers, and the counts that it is too."""


def weight_of(average: Role) -> Role:
    """The role of the weight of an average."""
    return Role(f"weight_{average.base}", number=average.number)
