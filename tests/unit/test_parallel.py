"""Threads side by side: what they free is kept for them, where malloc can be told so."""

import ctypes
import subprocess
import sys

import pytest
import torch

from grpo.policy import replicas
from grpo.policy.replicas import Replicas
from tests.unit.policy.batches import tiny_model

# Two threads, new ones in every round as in every update, write 24 MB each and free them.
PROGRAM = """
import resource, sys, torch
from grpo.parallel import keep_freed_memory, one_core_each
if sys.argv[1] == "keep":
    keep_freed_memory()
def write(_):
    tensors = [torch.ones(300_000) for _ in range(20)]
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(16):
    if number == 6:
        before = page_faults()
    with one_core_each(2) as pool:
        list(pool.map(write, range(2)))
print(page_faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_what_threads_freed_is_not_cleared_again():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "as it is")
    )
    assert kept < given_back / 3


def test_replicas_have_it_so_and_a_model_alone_has_not(monkeypatch):
    calls = []
    monkeypatch.setattr(replicas, "keep_freed_memory", lambda: calls.append(1))
    torch.set_num_threads(2)
    Replicas(tiny_model(), 1)
    assert calls == []
    Replicas(tiny_model(), 2)
    assert calls == [1]
