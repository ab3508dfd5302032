"""Roles and keys: what an array of a state is, as an object and as text.

The texts are the public contract: `export_state` gives them, and other frameworks are read into them. Only this file
puts them together and takes them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Averaged = str
"""The kind of what an average is of, "gradient" or "square"; empty for what is no average."""
About = Literal["", "rate", "decay"]
"""What an entry says about others: the constant that their gradient was multiplied by, or the decay that made them."""
_ABOUT: Mapping[str, About] = {"": "", "rate": "rate", "decay": "decay"}
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
        if number == 1:
            return self
        return Role(str(self._replace(of="")), self.of, number)

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
        return self.base.startswith("basis.")

    @property
    def belongs_to_basis(self) -> bool:
        """Whether it is a part of a basis, or of what a basis is made of."""
        return not {"basis", "memory"}.isdisjoint(self.base.split("."))

    @property
    def facts(self) -> Facts:
        """What is known of it."""
        if self.has_owner:
            return ROLES.get(self.unnumbered, Facts(self.owner))
        first = "_".join(self.words[:1])
        return ROLES.get(Role(self.base)) or ROLES.get(Role(self.base, first)) or Facts("whoever declares it")

    @property
    def known_as(self) -> Iterable[Role]:
        """The roles to look for it under: a second count may be the first, and steps the updates that were made."""
        if not self.is_count:
            return (self,)
        return dict.fromkeys((self, self.unnumbered, COUNT if self.unnumbered == STEPS else self.unnumbered))


class Facts(NamedTuple):
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
        about = f".{self.about}" if self.about else ""
        path = f"/{self.path}" if self.path else ""
        stored = f"@{self.stored}" if self.stored else ""
        return f"{self.role}{about}{path}{stored}"

    @staticmethod
    def parse(text: str, own: Iterable[Role] = ()) -> Key:
        """The key of this text.

        Args:
          text: the text.
          own: roles that are there. A slot may be called "rate", so an entry of such a role is not about another.
        """
        if (found := _KEY.fullmatch(text)) is None:
            return Key(Role.parse(text))
        role, suffix, path, stored = found.groups(default="")
        whole = Role.parse(role).part(suffix)
        if suffix and (whole in own or any(whole.is_within(recipe) for recipe in RECIPES.values())):
            return Key(whole, path, "", stored)
        return Key(Role.parse(role), path, _ABOUT[suffix], stored)

    @property
    def shared(self) -> Key:
        """The key of what all parameters share."""
        return self._replace(path="", stored="")

    @property
    def numbers(self) -> Key:
        """The key of the numbers that are stored so."""
        return self._replace(stored="")


COUNT = Role("count")
STEPS = Role("steps")
MU = Role("mu")
NU = Role("nu")
NU_MAX = Role("nu_max")
NU_INF = Role("nu_inf")
NU_INF_OF_STORED_EPS = Role("nu_inf", "stored_eps")
NU_ROW = Role("nu_row")
NU_COL = Role("nu_col")
MEAN = Role("mean")
TRACE = Role("trace")
SUM_OF_SQUARES = Role("sum", "squares")
GATHERED = Role("MultiSteps.acc_grads")
GATHERED_STEPS = Role("MultiSteps.mini_step")
GATHERED_UPDATES = Role("MultiSteps.gradient_step")

ROLES: Mapping[Role, Facts] = {
    COUNT: Facts("what counts updates"),
    STEPS: Facts("what may skip updates, where count is of those made"),
    Role("weight_mu"): Facts("what debiases an average of gradients"),
    Role("weight_nu"): Facts("what debiases an average of squares"),
    Role("weight_mu_read"): Facts("NAdam, of the decays that it looks ahead with"),
    Role("weight_nu_look_ahead"): Facts("AdaBelief, of the decays that it looks ahead with"),
    MU: Facts("Adam and most others", 1),
    MEAN: Facts("centered RMSprop", 1),
    TRACE: Facts("SGD, RMSprop and others with a momentum that is no average", 1),
    Role("previous_gradient"): Facts("MARS", 1),
    GATHERED: Facts("what gathers gradients of several steps for one update", 1),
    NU: Facts("Adam and most others; of blocks, Adam-mini and NovoGrad", 2, is_size=True),
    NU_MAX: Facts("AMSGrad", 2, is_size=True),
    NU_INF: Facts("AdaMax", 1, is_size=True),
    NU_ROW: Facts("Adafactor", 2, is_size=True),
    NU_COL: Facts("Adafactor", 2, is_size=True),
    Role("nu_yogi"): Facts("Yogi", 2, is_size=True),
    Role("nu_belief"): Facts("AdaBelief", 2, is_size=True),
    SUM_OF_SQUARES: Facts("Adagrad", 2, is_size=True),
    Role("residual"): Facts("parameters that have fewer bits than their updates"),
}
"""The roles that several links or frameworks have in common."""
AVERAGES: Mapping[str, Role] = {"gradient": MU, "square": NU}
"""What an average of a kind is called."""
LOOK_AHEAD = Role("weight_mu_read")
"""1 - the product of the decays that NAdam looks ahead with."""
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


def weight_of(average: Role, argument: str = "") -> Role:
    """The role of the weight of an average; `argument` names a decay that nothing is averaged by."""
    base = f"weight_{average.base}"
    return Role(f"{base}_{argument}" if argument else base, number=average.number)
