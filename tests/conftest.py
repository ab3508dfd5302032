"""Strict by default: no implicit promotion, warnings are errors (pyproject), eight virtual CPU devices."""

import contextlib
import gc
import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import pytest
import run

os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *run.FLAGS])  # read when the first array is made

collect_ignore = ["goldens"]  # scripts that record other frameworks, which need not be installed

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# What is fast, and fails first when a link or the machinery breaks: `pytest -m quick`, for the working loop. The
# comparison of each link with its formula belongs to it.
QUICK = {"test_chain", "test_errors", "test_link", "test_links", "test_parity_optax", "test_public", "test_summary"}


def pytest_configure(config):
    """What our own code is warned of is an error, a deprecation too."""
    folders = ("tests", "benchmarks", "examples")
    ours = ["adam_tx", "tests", *(path.stem for folder in folders for path in (config.rootpath / folder).glob("*.py"))]
    for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"error::{category}:({'|'.join(ours)})\\b")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in QUICK or "is_its_formula" in item.name:
            item.add_marker("quick")


def pytest_collection_finish():
    """What is there now stays; looking through it again and again takes a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


@contextlib.contextmanager
def skipped_without_float16():
    """Processors without F16C, older than AVX2, cannot convert float16 in a program of XLA's, whoever wrote it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "Failed to materialize symbols" not in str(error) or run.has_float16():
            raise
        pytest.skip("XLA has no float16 on this processor")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with skipped_without_float16():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with skipped_without_float16():
        return (yield)


@pytest.fixture
def x64():
    """float64 enabled for the duration of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def usual_compiler():
    """What is jitted in a test is compiled as for users, for tests of the last digits and of what a program costs."""
    with run.compiled_for_users():
        yield


@pytest.fixture
def as_written():
    """What is jitted in a test is rounded operation by operation, for tests of the last bit."""
    with run.compiled(run.AS_WRITTEN):
        yield


@pytest.fixture
def standard_promotion():
    """JAX's usual promotion, which parts of Optax and Keras rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
