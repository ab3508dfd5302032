"""The example of saving goes on after an interruption, and ends with the bits of a run that had none."""

import functools
import re
from pathlib import Path

import killed
import numpy as np
import pytest
from run import load_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "resume.py"


resume = load_script(EXAMPLE)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """One optimizer and one step, for all runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "create_optimizer", functools.cache(resume.create_optimizer))
        patch.setattr(resume, "make_advance", functools.cache(resume.make_advance))
        yield


@pytest.fixture
def run(capsys):
    """Runs the command, and returns what it prints: where it went on from, its steps, skipped batches and its hash."""

    def run(directory):
        resume.main(["--directory", str(directory), "--steps", "12", "--every", "3"])
        first, last = capsys.readouterr().out.splitlines()
        found = re.fullmatch(r"(\d+) steps, from step (\d+), (\d+) batches skipped, sha256 ([0-9a-f]{64})", last)
        assert first == f"from step {found[2]}"
        return int(found[2]), int(found[1]), int(found[3]), found[4]

    return run


@pytest.mark.exhaustive
def test_an_interrupted_run_goes_on_from_its_last_save_and_ends_with_the_bits_of_an_undisturbed_one(
    run, tmp_path, monkeypatch, capsys
):
    start, steps, skipped, sha256 = run(tmp_path / "undisturbed")
    assert (start, steps, skipped) == (0, 12, 1)

    def draw_some(step, draw_batch=resume.draw_batch):
        if step == 8:
            raise KeyboardInterrupt
        return draw_batch(step)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "draw_batch", draw_some)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "interrupted")
    assert capsys.readouterr().out == "from step 0\n"
    assert run(tmp_path / "interrupted") == (6, 12, 1, sha256)
    assert run(tmp_path / "interrupted") == (12, 12, 1, sha256)


def test_the_hash_is_of_every_bit_and_every_name():
    zeros, one = np.zeros(3, np.float32), np.int32(1)
    trees = [{"a": zeros, "b": one}, {"a": -zeros, "b": one}, {"a": zeros, "c": one}, {"a": zeros, "b": one + 1}]
    assert len(set(map(resume.digest, trees))) == 4
    assert resume.digest({"b": np.int32(1), "a": np.zeros(3, np.float32)}) == resume.digest(trees[0])


@pytest.mark.exhaustive
def test_a_training_killed_in_the_middle_of_saves_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    undisturbed = killed.Run(tmp_path / "undisturbed", steps=30).finish()
    kills, end = killed.disturb(tmp_path / "killed", steps=30, kills=2, seed=0)
    assert len(kills) == 2
    assert any(kill.saving is not None for kill in kills)
    assert undisturbed.resumed == 0
    assert end.resumed == kills[-1].complete > 0
    assert end.sha256 == undisturbed.sha256
