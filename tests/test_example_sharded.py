"""The example of layouts counts bytes right from shapes alone, and two processes train as one does."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from run import JAXLIB, load_script

ROOT = Path(__file__).parents[1]
EXAMPLE, PAGE = ROOT / "examples" / "sharded.py", ROOT / "docs" / "meshes.md"

HOST_MEMORY = pytest.mark.skipif(
    JAXLIB < (0, 10), reason="XLA for CPUs has no host memory in a program before jaxlib 0.10"
)
CLAIM = r"print\(.*\)  # (.+)$"


sharded = load_script(EXAMPLE)


@pytest.fixture(scope="module")
def shares():
    return sharded.shares(["8B"], [64])


def test_the_bytes_of_llama_follow_from_its_shapes(shares):
    of, kept = sharded.LLAMAS["8B"], 4096 * 65  # the scales of normalisation stay whole
    heads = 2 * 4096 * (4096 + 1024)
    split = of.layers * (heads + 3 * 4096 * 14336) + 2 * sharded.VOCABULARY * 4096
    wide, small = shares["8B", 64, "replicated"]
    weights, count = 2 * 2 * 4, 4
    assert wide == (4 * (split + kept), 8 * (split + kept) + weights + count)
    # three bytes, and two for each block of either moment
    assert small == (2 * (split + kept), 3 * (split + kept) + 2 * 2 * (split + kept) // 128 + weights + count)
    wide, small = shares["8B", 64, "ZeRO-1"]
    assert wide == (4 * (split + kept), 8 * (split // 64 + kept) + weights + count)
    assert small.state == 3 * (split // 64 + kept) + 2 * 2 * (split // 64 + kept) // 128 + weights + count
    wide, small = shares["8B", 64, "FSDP"]
    assert wide == (4 * (split // 64 + kept), 8 * (split // 64 + kept) + weights + count)
    assert small.params == 2 * (split // 64 + kept)
    wide, small = shares["8B", 64, "FSDP, state on the host"]
    assert (wide.state, small.state) == (weights + count, weights + count)


def test_the_table_has_a_row_for_every_layout(shares):
    table = sharded.render_shares(shares)
    assert table.row_count == 4
    assert [list(column.cells) for column in table.columns][2] == list(sharded.LAYOUTS)
    assert [list(column.cells) for column in table.columns][4] == ["64.26", "1.01", "1.01", "0.00"]


def run(*arguments):
    """The example in a process of its own, with the compiler of users."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"COLUMNS": "80"}
    command = [sys.executable, str(EXAMPLE), "--steps", "3", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(processes):
    """What they print, once all have ended well."""
    try:
        found = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, found, strict=True):
        assert process.returncode == 0, errors
    return [printed for printed, _ in found]


@HOST_MEMORY
@pytest.mark.exhaustive
def test_two_processes_with_four_devices_train_to_the_last_bit_as_one_with_eight():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--processes", "2"]
    first, second = outputs([run(*together, "--process", str(k)) for k in range(2)])
    (alone,) = outputs([run()])
    digests = [re.findall(r"^(\S.*?) +([0-9a-f]{64})$", printed, re.MULTILINE) for printed in (first, alone)]
    assert digests[0] == digests[1]
    assert [name for name, _ in digests[0]] == list(sharded.LAYOUTS)
    assert len({digest for _, digest in digests[0]}) == 1
    assert "SHA-256" not in second


def test_a_digest_tells_one_bit():
    params, state = {"w": jnp.ones(4)}, {"mu": jnp.zeros(4), "count": jnp.zeros((), jnp.int32)}
    found = {
        sharded.digest(params, state),
        sharded.digest({"w": jnp.nextafter(params["w"], 2.0)}, state),
        sharded.digest(params, state | {"mu": -state["mu"]}),
    }
    assert len(found) == 3
    assert sharded.digest({"w": np.ones(4, np.float32)}, state) in found


def test_the_page_on_meshes_runs_and_has_the_bytes_of_the_example(shares, standard_promotion, capsys):
    page = PAGE.read_text()
    if JAXLIB < (0, 10):  # whose XLA for CPUs has no host memory in a program
        page = re.sub(r"\n## State in the memory of the host.*?(?=\n## )", "", page, flags=re.DOTALL)
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)
    exec("".join(code for code, _ in blocks), {})
    said = [line for code, after in blocks for line in [*re.findall(CLAIM, code, re.M), *after.splitlines()]]
    assert capsys.readouterr().out.splitlines() == said
    for (size, devices, layout), of in shares.items():
        figures = " | ".join(f"{part / 1e9:.2f}" for share in of for part in share)
        assert f"| {size} | {devices} | {layout} | {figures} |" in page
