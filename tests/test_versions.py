"""The tests hold on every version of what they need: whose deprecations are errors."""

import warnings

import pytest


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["adam_tx", "adam_tx.links.rms", __name__, "flax_mlp", "cost"])
def test_what_our_own_code_is_warned_of_is_an_error(module, category):
    with pytest.raises(category, match="goes away"):
        warnings.warn_explicit("goes away", category, "a.py", 1, module)


@pytest.mark.parametrize("module", ["jax._src.core", "keras.src.backend", "flax.nnx", "numpy", "a_library_of_tomorrow"])
def test_a_deprecation_in_another_library_is_no_error(module):
    warnings.warn_explicit("goes away", DeprecationWarning, "a.py", 1, module)


def test_any_other_warning_is_an_error_wherever_it_arises():
    with pytest.raises(UserWarning, match="donated"):
        warnings.warn_explicit("donated buffers were not usable", UserWarning, "a.py", 1, "jax._src.interpreters.mlir")
