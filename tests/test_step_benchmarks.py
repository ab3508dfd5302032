"""The benchmarks of `adam_tx.step` run, at their smallest, and print what they say they print."""

import sys

import one_pass
import pytest
import training_step

pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")
pytestmark = pytest.mark.usefixtures("standard_promotion")


def printed(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--smallest"])
    module.main()
    return capsys.readouterr().out


@pytest.mark.exhaustive
def test_one_pass_prints_a_line_for_each_contender(monkeypatch, capsys):
    lines = printed(one_pass, monkeypatch, capsys).splitlines()
    for name in ("optax", *(f"{name}, {who}" for name in one_pass.STORED for who in ("XLA", "step"))):
        assert any(line.strip().startswith(name) and "ms" in line for line in lines)


@pytest.mark.exhaustive
def test_training_step_prints_a_line_for_each_model_and_storage(monkeypatch, capsys):
    lines = printed(training_step, monkeypatch, capsys).splitlines()
    assert sum("->" in line for line in lines) == 6
