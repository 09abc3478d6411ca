"""
Training of the base by several processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files

import torch
from safetensors.torch import load_file

MODULE = "netdiffusion_stable_diffusion.train"
STEPS = ["--autoencoder-steps", "3", "--unet-steps", "2", "--longest", "16", "--score-every", "0"]


def test_two_processes_train_one_base(tmp_path):
    """
    Their batches differ from those of one process alone, and what they write is one base.
    """
    data, one, two = str(files("netdiffusion_core") / "samples/lab/mqtt"), tmp_path / "one", tmp_path / "two"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, "-m", MODULE]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", MODULE]
    for words, folder in ((alone, one), (together, two)):
        subprocess.run([*words, data, "-o", str(folder), *STEPS], env=environment, check=True, timeout=300)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    records = [json.loads((folder / "training.json").read_text()) for folder in (one, two)]
    assert [row["step"] for row in records[0]["unet"]] == [row["step"] for row in records[1]["unet"]] == [2]
    weights = [load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (one, two)]
    assert any(not torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_training_goes_on_from_a_base(tmp_path):
    """
    Its autoencoder and its record stay, and after a step the other weights are near those that it began with.
    """
    data = str(files("netdiffusion_core") / "samples/lab/mqtt")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", MODULE, data, "--unet-steps", "1", "--longest", "16", "--score-every", "0"]
    begin = ["--begin-with", "embedded"]
    subprocess.run([*words, *begin, "-o", str(tmp_path / "on")], env=environment, check=True, timeout=300)
    embedded = files("netdiffusion_stable_diffusion") / "base"
    weights = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(str(folder / "vae" / weights)) for folder in (embedded, tmp_path / "on"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    record = json.loads((tmp_path / "on" / "training.json").read_text())
    assert record["begun_with"] == json.loads((embedded / "training.json").read_text())
    for part in ("unet", "controlnet"):
        before, after = (load_file(str(folder / part / weights)) for folder in (embedded, tmp_path / "on"))
        far = max((after[name].float() - weight.float()).abs().max().item() for name, weight in before.items())
        assert far < 1e-3
    words = [sys.executable, "-m", "netdiffusion_core", "train-base", data, "-o", str(tmp_path / "no")]
    refused = subprocess.run([*words, "--begin-with", "no"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--begin-with no: there is no such folder" in refused.stderr
