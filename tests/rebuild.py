"""Helpers of the tests that write an optimizer down and make it anew."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import adam_tx


def through_json(tx):
    """Its config as it comes back from JSON, which is to change nothing."""
    config = adam_tx.get_config(tx)
    again = json.loads(json.dumps(config, allow_nan=False))
    assert again == config
    return again


def unknown(config, path="config"):
    """Where a config has something that it cannot hold, and what."""
    if isinstance(config, dict):
        if "unknown" in config:
            yield path, config["unknown"]
        for key, value in config.items():
            yield from unknown(value, f"{path}[{key!r}]")
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from unknown(value, f"{path}[{i}]")


def program(tx, params):
    """All that `init` and `update` compute, constants included: equal programs give equal bits."""
    state = jax.eval_shape(tx.init, params)
    jaxprs = [jax.make_jaxpr(tx.init)(params), jax.make_jaxpr(tx.update)(params, state, params)]
    constants = [(x.dtype, np.asarray(x).tobytes()) for jaxpr in jaxprs for x in map(jnp.asarray, jaxpr.consts)]
    return [f"{jaxpr}" for jaxpr in jaxprs], constants, jax.tree.structure(state)
