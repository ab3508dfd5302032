"""Helpers that tests share: running a transformation over given gradients."""

import contextlib
import functools
import importlib.util
import inspect
import operator
import pathlib
import sys

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import optax
import oracles
import pytest

import adam_tx

JAXLIB = jaxlib.version.__version_info__
"""The version of XLA's compiler, on which it depends what a program costs."""

# Compiling is what takes the time. LLVM optimises nothing, and of XLA's two emitters of loops, where there are two, the
# older is faster. The operations, which are chosen before, are the same; `usual_compiler` gives back what users have.
# XLA ends the process when it is given a flag that it does not know, so each version is given its own alone.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
AS_FOR_USERS = {"xla_backend_optimization_level": 3}
"""Compiler options that undo `FLAGS`, for tests of the last bit."""
if JAXLIB < (0, 11, 2):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    AS_FOR_USERS["xla_cpu_use_fusion_emitters"] = True
AS_WRITTEN = {"xla_disable_hlo_passes": "fusion"}
"""Compiler options that make each operation a kernel of its own, for tests of equal bits. In a larger kernel a product
and a sum are rounded once or twice, which depends on the processor's instructions and the array's shape."""


@contextlib.contextmanager
def compiled(options):
    """What is jitted meanwhile is compiled with these options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield


def compiled_for_users():
    """What is jitted meanwhile is compiled as for users."""
    return compiled(AS_FOR_USERS)


def has_float16():
    """Whether XLA can convert float16 on this processor."""
    try:
        return bool(jax.jit(lambda x: x.astype(jnp.float32))(np.ones(1, np.float16))[0])
    except jax.errors.JaxRuntimeError:
        return False


def asked_for(request, *parameters):
    """What the tests that will use this fixture have as these parameters (`name` if none): all that it must prepare."""
    values = operator.itemgetter(*(parameters or ["name"]))
    users = [item for item in request.session.items if request.fixturename in item.fixturenames]
    return list(dict.fromkeys(values(item.callspec.params) for item in users if item.path == request.path))


def public_links():
    """The name of each link of the library, and the file it is in."""
    found = {}
    for name in adam_tx.__all__:
        function = getattr(adam_tx, name)
        if inspect.isfunction(function) and "Link" in str(inspect.signature(function).return_annotation):
            file = pathlib.Path(inspect.getfile(inspect.unwrap(function)))
            found |= {name: file} if file.parent.name == "links" else {}
    return found


@functools.cache  # once, so that what a name stands for is the same in every file of tests
def load_script(path):
    """A script, such as an example, as a module, which is found by its name when what it made is unpickled."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def trajectory(tx, params, grads, dtype=None):
    """Parameters after every step, as `oracles` returns them; one jitted scan over the gradients."""
    params, grads = (jnp.asarray(x, dtype) for x in (params, grads))

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = apply_updates(params, updates)
        return (params, state), params

    return np.asarray(jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])(params, grads))


def assert_follows(tx, oracle, *, raw=False, leaves=("real", "complex"), steps=15, shape=(4, 3), rtol=1e-12):
    """What is emitted is what the oracle yields, given the (updates, gradient, parameters) of each step of a leaf.

    In float64, on `oracles.link_problem`, with updates that are the raw gradient if `raw`, as Optax takes them. The
    tolerance is some thousand roundings.
    """
    problem = [{name: tree[name] for name in leaves} for tree in oracles.link_problem(steps, shape)]
    updates, grads, params = [problem[1], *problem[1:]] if raw else problem
    tx = optax.with_extra_args_support(tx)

    def step(state, given):
        updates, grad, params = given
        updates, state = tx.update(updates, state, params, grad=grad)
        return state, updates

    def scan(*given):
        return jax.lax.scan(step, tx.init({name: p[0] for name, p in given[2].items()}), given)[1]

    with jax.enable_x64(True):
        emitted = jax.jit(scan)(*jax.tree.map(jnp.asarray, (updates, grads, params)))
    for name in leaves:
        exact = np.stack(list(oracle(zip(updates[name], grads[name], params[name], strict=True))))
        np.testing.assert_allclose(emitted[name], exact, rtol, atol=rtol * np.abs(exact).max(), err_msg=name)


def spelled(settings):
    """Settings as the name of a test: decay=0.8, debias=True."""
    return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in settings.items())


def apply_updates(params, updates):
    """`optax.apply_updates`, also for two dtypes under strict promotion and a complex update of a real parameter."""
    updates = jax.tree.map(lambda p, u: u if jnp.iscomplexobj(p) else u.real, params, updates)
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates)


def relative_error(ours, theirs, start):
    """The largest difference, relative to the furthest any parameter has moved."""
    return np.abs(ours - theirs).max() / np.abs(theirs - start).max()


def ends(makers, params, grads):
    """The last of each trajectory, by name, from one program: compiling is what takes the time."""
    params, grads = jnp.asarray(params), jnp.asarray(grads)
    optimizers = {name: make() for name, make in makers.items()}

    def end(tx):
        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]

    return jax.tree.map(np.asarray, jax.jit(lambda: {name: end(tx) for name, tx in optimizers.items()})())


def end_of_trees(tx, params, grads):
    """The parameters after these gradients, trees both."""
    step = jax.jit(lambda grad, state, params: tx.update(grad, state, params))
    state = tx.init(params)
    for grad in grads:
        updates, state = step(grad, state, params)
        params = apply_updates(params, updates)
    return params
