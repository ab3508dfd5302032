"""Record which steps three stacks skip: `python tests/goldens/record_spikes.py CLONES` writes spikes.json.

CLONES holds a clone of each repository in SOURCES, at its commit, in a directory named `<owner>+<name>`. Of each the
one file is run that says the rule, without the rest of its package. It needs PyTorch.

The losses and norms are those of a softmax regression on small batches, with spikes planted where the rules differ.
"""

import ast
import hashlib
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

FILE = pathlib.Path(__file__).with_name("spikes.json")
LENGTH, DEVIATIONS = 128, 6.0

# The commit, and git's hash of the file that says the rule.
SOURCES = {
    "allenai/OLMo-core": (
        "fa6c5014c9f6e9ee789da2d9c20d5126fee8df0d",
        "src/olmo_core/optim/skip_step_optimizer.py",
        "3af7d9d1accbb79d363f24a70a5d2aca81e05db6",
    ),
    "AI-Hypercomputer/maxtext": (
        "e591f30cbbf217ed67ef71263ec0538239f9c3b8",
        "src/maxtext/optimizers/optimizers.py",
        "67e1f589ca53972fb92ed9fd0c7d902598d37eb2",
    ),
    "stanford-crfm/levanter": (
        "9263f81e8b453241332c2c0b2d2001bfb2d2241c",
        "src/levanter/optim/skipstep.py",
        "4d6680b1e810a461af877777268b2456602f2ae6",
    ),
}


def olmo_core(definitions, losses, norms):
    """Which steps `SkipStepOptimizer` would not take."""
    import torch

    optimizer = definitions["SkipStepOptimizer"]([torch.zeros(1)], {}, LENGTH, DEVIATIONS)
    for loss, norm in zip(losses, norms, strict=True):
        optimizer.latest_loss = torch.tensor(loss, dtype=torch.float64)
        optimizer.latest_grad_norm = torch.tensor(norm, dtype=torch.float64)
        yield float(optimizer.get_step_factor()) == 0.0


def maxtext(definitions, losses, norms):
    """Which steps `skip_step_on_spikes` leaves out."""
    tx = definitions["skip_step_on_spikes"](optax.sgd(1.0), LENGTH, DEVIATIONS)
    state, step = tx.init(jnp.zeros(1)), jax.jit(tx.update)
    for loss, norm in zip(losses, norms, strict=True):
        _, state = step(jnp.full(1, norm), state, jnp.zeros(1), loss=jnp.float32(loss), grad_norm=jnp.float32(norm))
        yield bool(state["is_skipped"])


def levanter(definitions, losses, norms):
    """Which steps a `SkipStepConfig` leaves out."""
    tx = definitions["SkipStepConfig"](LENGTH, DEVIATIONS).wrap(optax.sgd(1.0))
    state = tx.init(jnp.zeros(1))
    for loss, norm in zip(losses, norms, strict=True):
        updates, state = tx.update(jnp.full(1, norm), state, jnp.zeros(1), loss=jnp.float32(loss))
        yield not updates.any()


RULES = {"allenai/OLMo-core": olmo_core, "AI-Hypercomputer/maxtext": maxtext, "stanford-crfm/levanter": levanter}


def definitions(clones, repository):
    """What the file of a repository defines, once it is seen to be that of the commit.

    What it imports from its own package is no part of the rule, and stands as nothing.
    """
    commit, path, expected = SOURCES[repository]
    content = (clones / repository.replace("/", "+") / path).read_bytes()
    if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != expected:
        raise ValueError(f"{path} is not that of {repository}@{commit}")
    tree = ast.parse(content)
    tree.body = [node for node in tree.body if not _is_of_package(node)]
    own = types.ModuleType(f"of_{repository.rpartition('/')[2]}")
    sys.modules[own.__name__] = own  # data classes look there
    nothing = types.SimpleNamespace(tracker=types.SimpleNamespace(jit_log=lambda _: None))
    vars(own).update(
        levanter=nothing,
        is_jax_array_like=lambda x: isinstance(x, jax.Array),
        get_default_device=lambda: "cpu",
        move_to_device=lambda x, device: x.to(device),
    )
    exec(compile(tree, path, "exec"), vars(own))
    return vars(own)


def _is_of_package(node):
    if isinstance(node, ast.ImportFrom):
        return node.module.split(".")[0] in {"olmo_core", "maxtext", "levanter", "haliax"}
    return isinstance(node, ast.Import) and node.names[0].name.startswith("levanter")


def trained(steps, seed=0):
    """The losses and norms of a softmax regression on small batches."""
    rng = np.random.default_rng(seed)
    truth, weights = rng.normal(size=(16, 8)), np.zeros((16, 8))
    for _ in range(steps):
        inputs = rng.normal(size=(64, 16))
        labels = np.argmax(inputs @ truth + rng.gumbel(size=(64, 8)), 1)
        logits = inputs @ weights
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        grad = inputs.T @ (np.exp(logits) - np.eye(8)[labels]) / 64
        yield -logits[np.arange(64), labels].mean(), np.linalg.norm(grad)
        weights -= 0.2 * grad


def planted(losses, norms):
    """The same with spikes: where rules begin, of one and of both, one after the other, at the limit; and a rise."""
    losses[63] *= 10  # after 63 numbers
    norms[64] *= 20
    losses[230] *= 10
    norms[260] *= 20
    losses[420], norms[420] = 9 * losses[420], 30 * norms[420]
    losses[440] *= 3  # hidden by the one before it
    for number, number_of in ((600, losses), (780, norms)):  # between the limits of the variances by n and by n - 1
        before = number_of[number - LENGTH : number]
        number_of[number] = before.mean() + (1.002 * DEVIATIONS) * before.std()
    losses[900:] *= 10


def main(clones):
    """Record the series and, by repository, which steps are skipped."""
    losses, norms = np.array([*trained(1200)]).T
    planted(losses, norms)
    losses, norms = (np.float64(np.float32(series)) for series in (losses, norms))
    skipped = {}
    for repository, rule in RULES.items():
        steps = rule(definitions(clones, repository), losses, norms)
        skipped[repository] = np.flatnonzero([*steps]).tolist()
    record = {"length": LENGTH, "deviations": DEVIATIONS, "losses": losses.tolist(), "norms": norms.tolist()}
    FILE.write_text(json.dumps(record | {"skipped": skipped}) + "\n")
    print(skipped)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
