"""`audit`: which Adam an optimizer of PyTorch is."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np

from adam_tx.probes._audit import audited
from adam_tx.probes.promises import DTYPES, MID, Promise, counted, of_answers
from adam_tx.probes.rates import RATE
from adam_tx.probes.report import Audit
from adam_tx.probes.subject import Trees


def audit(optimizer: Any, *, promises: bool = True, name: str | None = None, **settings: Any) -> Audit:
    """Say which optimizer one of PyTorch's is, from what it does, and which promises it keeps.

    It is probed as `adam_tx.audit` probes a transformation, with the same limits: new
    optimizers of its class are made for parameters of their own, so one that is given is
    not touched. Of one with several groups the settings are those of the first.

    Args:
      optimizer: a class, such as `torch.optim.AdamW`, or an optimizer.
      promises: whether to try these, too.
      name: what to call it in the report.
      **settings: what its class takes beside the parameters.

    Returns:
      An `adam_tx.probes.report.Audit`.

    Raises:
      ImportError: PyTorch is not installed.
      TypeError: the class cannot be made with these settings, or its `step` needs more than gradients.

    >>> import torch  # doctest: +SKIP
    >>> adam_tx.interop.torch.audit(torch.optim.AdamW, lr=0.1).assert_is("optax.adamw")  # doctest: +SKIP
    """
    if not isinstance(optimizer, type):
        settings = _settings_of(optimizer) | settings
        optimizer = type(optimizer)
    rated = "lr" in inspect.signature(optimizer).parameters
    subject = TorchOptimizer(optimizer, settings, name or f"{optimizer.__module__}.{optimizer.__name__}")
    tried = [*of_answers(subject, MID), *_of_groups(subject)] if promises else []
    if promises:
        tried += [
            counted(f"counts go past 256, 65,536 and 2^24 ({d} parameters)", subject.advance, d) for d in DTYPES[1:]
        ]

    def make(rate: Any) -> TorchOptimizer:
        return TorchOptimizer(optimizer, {**settings, "lr": rate}, subject.name)

    rate = settings.get("lr", RATE)
    can_vary = rated and isinstance(rate, float)
    return audited(subject, tried, make if can_vary else None, schedules=False)


def _settings_of(optimizer: Any) -> dict[str, Any]:
    """What the class of an optimizer was called with, by its first group."""
    taken = inspect.signature(type(optimizer)).parameters
    return {key: value for key, value in optimizer.param_groups[0].items() if key in taken and key != "params"}


class TorchOptimizer:
    """An optimizer of PyTorch as a `Subject`: each experiment has parameters of its own in one optimizer."""

    def __init__(self, optimizer: type, settings: Mapping[str, Any], name: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise ImportError("interop.torch.audit: PyTorch is not installed; install torch.") from error
        self.torch: Any = torch
        self.optimizer: Any = optimizer
        self.settings = settings
        self.name = name

    def held(self, grads: Trees, params: Trees, dtype: str) -> Trees:
        """As `Subject` says."""
        return self._steps(grads, {key: value[:, 0] for key, value in params.items()}, dtype, params)

    def followed(self, grads: Trees, start: Trees, dtype: str) -> Trees:
        """As `Subject` says."""
        return self._steps(grads, start, dtype, None)

    def _steps(self, grads: Trees, start: Trees, dtype: str, params: Trees | None) -> Trees:
        torch = self.torch
        kept = getattr(torch, dtype)
        with self._scalars(dtype):
            leaves = {key: [self._tensor(row, kept) for row in value] for key, value in start.items()}
            flat = [(key, row, leaf) for key, rows in leaves.items() for row, leaf in enumerate(rows)]
            optimizer = self.optimizer([leaf for _, _, leaf in flat], **self.settings)
            given = {key: torch.tensor(value, dtype=kept) for key, value in grads.items()}
            places = params and {key: torch.tensor(value, dtype=kept) for key, value in params.items()}
            updates = {key: np.zeros_like(value, dtype=np.float64) for key, value in grads.items()}
            for step in range(next(iter(grads.values())).shape[1]):
                before: list[Any] = []
                for key, row, leaf in flat:
                    if places is not None:
                        leaf.data = places[key][row, step].clone()
                    leaf.grad = given[key][row, step].clone()
                    before.append(leaf.detach().clone())
                optimizer.step()
                for (key, row, leaf), old in zip(flat, before, strict=True):
                    updates[key][row, step] = (leaf.detach().double() - old.double()).numpy()
        return updates

    def _tensor(self, value: Any, dtype: Any) -> Any:
        return self.torch.nn.Parameter(self.torch.tensor(value, dtype=dtype))

    @contextlib.contextmanager
    def _scalars(self, dtype: str) -> Generator[None]:
        """Numbers of the state have float64 where that is probed: PyTorch takes the default dtype for them."""
        usual = self.torch.get_default_dtype()
        self.torch.set_default_dtype(self.torch.float64 if dtype == "float64" else self.torch.float32)
        try:
            yield
        finally:
            self.torch.set_default_dtype(usual)

    def begun(self, dtype: str, updates: int) -> tuple[Any, Any, dict[str, float]]:
        """A parameter, an optimizer that has made some updates, and the scalars of its state."""
        torch = self.torch
        leaf = self._tensor([1.0, 1.0], getattr(torch, dtype))
        optimizer = self.optimizer([leaf], **self.settings)
        for _ in range(updates):
            leaf.grad = torch.ones_like(leaf)
            optimizer.step()
        scalars = {k: float(v) for k, v in optimizer.state[leaf].items() if np.ndim(v) == 0 and v is not None}
        return leaf, optimizer, scalars

    def advance(self, dtype: str, past: int) -> dict[str, tuple[float, str]]:
        """Set what counts updates, and make two of them."""
        torch = self.torch
        first, second, third = (self.begun(dtype, updates)[2] for updates in (1, 2, 3))
        counts = [k for k in first if (second[k], third[k]) == (first[k] + 1.0, first[k] + 2.0)]
        leaf, optimizer, _ = self.begun(dtype, 1)
        state = optimizer.state[leaf]
        for key in counts:
            state[key] = torch.full_like(state[key], past) if torch.is_tensor(state[key]) else past
        for _ in range(2):
            leaf.grad = torch.ones_like(leaf)
            optimizer.step()
        return {k: (float(state[k]), str(getattr(state[k], "dtype", "int")).removeprefix("torch.")) for k in counts}


def _of_groups(subject: TorchOptimizer) -> Iterator[Promise]:
    """Whether a group's own learning rate is used."""
    torch, settings = subject.torch, {key: value for key, value in subject.settings.items() if key != "lr"}
    leaves = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, (RATE, 3.0 * RATE), strict=True)]
    optimizer = subject.optimizer(groups, **settings)
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    for _ in range(2):
        optimizer.step()
    moved = [float(leaf.detach()[0]) for leaf in leaves]
    share = moved[1] / moved[0] if moved[0] else float("nan")
    yield Promise("each group has its own learning rate", abs(share - 3.0) < 0.01, f"{share:.6g} at three times it")
