"""What the tests rest on, on every version and processor: whose deprecations are errors, which instructions are run."""

import subprocess
import warnings

import instruction_sets
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


def test_the_suite_runs_with_every_set_of_instructions_that_the_processor_has(monkeypatch, capsys):
    def run(command, env, **_):
        failed = (
            "FAILED tests/test_a.py::test_b - x\n1 failed, 2 passed in 1s" if "AVX2" in env["XLA_FLAGS"] else "3 passed"
        )
        return subprocess.CompletedProcess(command, 1, f"..F\n{failed}\n")

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(instruction_sets, "flags", lambda: {"sse4_2", "avx2"})
    monkeypatch.setattr(subprocess, "run", run)
    assert instruction_sets.main(["tests/test_a.py"])
    assert capsys.readouterr().out.split("\n") == [
        "SSE4_2  3 passed",
        "AVX2    1 failed, 2 passed in 1s",
        "        FAILED tests/test_a.py::test_b - x",
        "",
    ]
