"""
The backend on a small, randomly initialised base of packets: it trains, samples, saves and refuses.

What the embedded base is worth is not asked here: the evaluators' report says that.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import attrs
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError, DataError
from netdiffusion_core.model import Encoded, Layout, SampleRequest
from netdiffusion_stable_diffusion import checkpoint, fine_tuning
from netdiffusion_stable_diffusion.autoencoder import (
    TIME,
    PacketAutoencoder,
    noise,
    with_binary_time,
    with_unary_time,
)
from netdiffusion_stable_diffusion.backend import Options, StableDiffusion
from netdiffusion_stable_diffusion.control import END, plans, starts
from netdiffusion_stable_diffusion.diffusion import denoising_loss, padded, prompt, services
from netdiffusion_stable_diffusion.images import canny
from netdiffusion_stable_diffusion.train import leave_out


def options(base, **changes) -> Options:
    defaults = {"steps": 4, "rows_per_step": 128, "sampling_steps": 2, "threads": 1, "lora_rank": 2, "device": "cpu"}
    return Options(**{**defaults, "base": str(base), **changes})


REQUEST = SampleRequest(labels=("long", "short", "long", "short", "short"), max_packets=32, seed=7)


class TestPacketBase:
    """
    The embedded base's family.
    """

    @pytest.mark.parametrize("control", ["none", "class", "exemplar"])
    def test_fit_save_load_sample(self, packet_base, data, tmp_path, control):
        """
        A loaded model samples exactly what the fitted one does, with no pickle in its folder.
        """
        backend = StableDiffusion(options(packet_base, control=control))
        backend.fit(data, Context())
        fitted = backend.sample(REQUEST, Context())
        backend.save(tmp_path)
        loaded = StableDiffusion.load(tmp_path).sample(REQUEST, Context())
        np.testing.assert_array_equal(fitted.rows, loaded.rows)
        assert fitted.labels.tolist() == list(REQUEST.labels)
        assert set(np.unique(fitted.rows)) <= {-1, 0, 1}
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}

    def test_lora_learns(self, packet_base, data):
        """
        Fine-tuning lowers the denoising loss on the user's flows.
        """
        losses = []
        for steps in (0, 100):
            backend = StableDiffusion(
                options(packet_base, steps=steps, learning_rate=3e-2, lora_rank=8, lora_alpha=8, control="none")
            )
            backend.fit(data, Context())
            model, generator = backend.checkpoint, torch.Generator().manual_seed(0)
            latents = model.codec.encode(torch.tensor(padded(data, np.arange(12), 16)))
            with torch.no_grad():
                losses.append(
                    denoising_loss(model, latents, model.embed([prompt("long", "")] * 12), None, generator).item()
                )
        assert losses[1] < 0.97 * losses[0]

    @pytest.mark.parametrize("stopped_at", [1, 3, 4])
    def test_fine_tuning_that_was_interrupted_ends_as_it_would_have(
        self, packet_base, data, tmp_path, monkeypatch, stopped_at
    ):
        """
        The state of each step is kept, and no step is taken again.
        """
        monkeypatch.setattr(fine_tuning, "CHECKPOINT_SECONDS", -1)
        whole = StableDiffusion(options(packet_base))
        whole.fit(data, Context())

        taken = []

        @contextmanager
        def stop(title, total):
            def advance(steps=1, note=""):
                if title == "fine-tune" and note:
                    taken.append(note)
                    if len(taken) == stopped_at + 1:
                        raise KeyboardInterrupt

            yield advance

        for attempt in range(2):
            backend = StableDiffusion(options(packet_base))
            context = Context(checkpoints=tmp_path / "checkpoints", progress=stop)
            with pytest.raises(KeyboardInterrupt) if not attempt and stopped_at < 4 else nullcontext():
                backend.fit(data, context)
        assert len(taken) == 4 + (stopped_at < 4)  # the step in which it was stopped, and no other, twice
        again = backend.sample(REQUEST, Context())
        np.testing.assert_array_equal(whole.sample(REQUEST, Context()).rows, again.rows)

    def test_flow_does_not_depend_on_batch_size(self, packet_base, data, tmp_path):
        """
        Flow i is the same flow alone in its batch and among others.
        """
        backend = StableDiffusion(options(packet_base))
        backend.fit(data, Context())
        backend.save(tmp_path)
        alone = StableDiffusion.load(tmp_path, attrs.evolve(backend.options, rows_per_batch=1))
        together, single = (b.sample(REQUEST, Context()) for b in (backend, alone))
        assert together.lengths.tolist() == single.lengths.tolist()
        # float32 sums differ in their last bits with the batch size; a drawn bit may sit on the edge
        assert (together.rows != single.rows).mean() < 0.001

    def test_sampling_changes_no_weight(self, packet_base, data):
        backend = StableDiffusion(options(packet_base))
        backend.fit(data, Context())
        before = {name: weight.clone() for name, weight in backend.checkpoint.unet.state_dict().items()}
        backend.sample(REQUEST, Context())
        after = backend.checkpoint.unet.state_dict()
        assert all(torch.equal(weight, after[name]) for name, weight in before.items())

    def test_adapter_loads_into_diffusers(self, packet_base, data, tmp_path):
        """
        diffusers itself loads the adapter, and it changes the U-Net's output.
        """
        backend = StableDiffusion(options(packet_base, learning_rate=0.1))
        backend.fit(data, Context())
        backend.save(tmp_path)
        unet = UNet2DConditionModel.from_pretrained(packet_base, subfolder="unet")
        x, text = torch.ones(1, 16, 1, 8), torch.ones(1, 3, 16)
        before = unet(x, 1, text).sample
        unet.load_lora_adapter(tmp_path, prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        assert not torch.allclose(before, unet(x, 1, text).sample)

    def test_what_waits_is_brought_to_the_device(self, packet_base, data, waiting):
        """
        With offload, text encoder and autoencoder may only work where `at_work` has brought them to the device.
        """
        waiting(PacketAutoencoder, CLIPTextModel)
        backend = StableDiffusion(options(packet_base))
        backend.fit(data, Context())
        assert len(backend.sample(REQUEST, Context())) == len(REQUEST.labels)

    def test_longer_flows_are_cut(self, packet_base, data):
        """
        max_packets holds.
        """
        backend = StableDiffusion(options(packet_base))
        backend.fit(data, Context())
        assert backend.sample(attrs.evolve(REQUEST, max_packets=3), Context()).lengths.max() <= 3

    def test_flows_of_more_than_1024_packets_are_made_where_they_were_learned(self, packet_base, data, tmp_path):
        """
        By a model that was saved, too.
        """
        repeated = [np.tile(data.flow(i), (120 if label == "long" else 1, 1)) for i, label in enumerate(data.labels)]
        starts = np.append(0, np.cumsum([len(rows) for rows in repeated]))
        backend = StableDiffusion(options(packet_base, steps=1))
        backend.fit(attrs.evolve(data, rows=np.concatenate(repeated), starts=starts), Context())
        backend.save(tmp_path)
        request = SampleRequest(labels=("long", "short"), max_packets=4096, seed=7)
        long, short = StableDiffusion.load(tmp_path).sample(request, Context()).lengths
        assert long > 1024
        assert short < 1024


class TestRefusals:
    """
    What cannot be used is refused in one sentence.
    """

    def test_unknown_class(self, packet_base, data):
        backend = StableDiffusion(options(packet_base, steps=1))
        backend.fit(data, Context())
        with pytest.raises(DataError, match="Did you mean 'short'"):
            backend.sample(SampleRequest(labels=("shrt",), max_packets=8, seed=0), Context())

    def test_other_layout(self, packet_base, data):
        other = attrs.evolve(data, layout=attrs.evolve(data.layout, version=2))
        with pytest.raises(DataError, match="version 1"):
            StableDiffusion(options(packet_base)).fit(other, Context())

    @pytest.mark.parametrize("control", ["class", "exemplar"])
    def test_damaged_control_maps(self, packet_base, data, tmp_path, control):
        """
        Maps that are no file of tensors, of the wrong size, or lack a class are found when the model is loaded.
        """
        backend = StableDiffusion(options(packet_base, steps=1, control=control))
        backend.fit(data, Context())
        backend.save(tmp_path)
        path = tmp_path / "control.safetensors"
        whole = load_file(path)
        damaged = [
            {name: array[..., :-1].copy() for name, array in whole.items()},
            {name: array[:-1] for name, array in whole.items()}
            if control == "class"
            else {name: array for name, array in whole.items() if not name.startswith("1/")},
        ]
        for arrays in damaged:
            save_file(arrays, path)
            with pytest.raises(DataError, match=r"control\.safetensors is damaged"):
                StableDiffusion.load(tmp_path)
        path.write_bytes(b"\x00" * 30)
        with pytest.raises(DataError, match="not a model"):
            StableDiffusion.load(tmp_path)
        save_file(whole, path)
        StableDiffusion.load(tmp_path)

    def test_unusable_device(self, packet_base, data):
        with pytest.raises(ConfigError, match="cuda:77"):
            StableDiffusion(options(packet_base, device="cuda:77")).fit(data, Context())


def test_a_base_that_has_not_seen_some_classes(data):
    assert set(leave_out(data, ["long"]).labels) == {"short"}
    with pytest.raises(ConfigError, match=r"--without lung: .* Did you mean 'long'"):
        leave_out(data, ["lung"])


def bits(number: int, width: int) -> list[int]:
    return [number >> i & 1 for i in reversed(range(width))]


@pytest.mark.parametrize("microseconds", [0, 1, 5, 8, 1000, 123_456_789, 2**48 - 1])
def test_unary_time_keeps_what_is_no_noise(microseconds):
    """
    An inter-arrival time through its unary code and back keeps its magnitude and its next three bits.
    """
    spans = {TIME: slice(0, 48)}
    row = torch.tensor([bits(microseconds, 48)], dtype=torch.int8)
    back = with_binary_time(with_unary_time(row, spans), spans)
    kept = int("".join(map(str, back[0].tolist())), 2)
    assert kept <= microseconds
    assert microseconds - kept <= microseconds / 8
    assert torch.equal(back, torch.where(noise(row, spans), 0, row))


def test_noise_of_ports_and_options():
    """
    An ephemeral port and the values of time stamps are noise; a service's port, option kinds and lengths are not.
    """
    layout = Layout(
        name="test", version=1, fields=(("tcp.sprt", 16), ("tcp.dprt", 16), ("tcp.opt", 96), ("trace.direction", 1))
    )
    options = [octet for number in (1, 1, 8, 10, *range(8)) for octet in bits(number, 8)]
    row = torch.tensor([bits(51_000, 16) + bits(443, 16) + options + [0]], dtype=torch.int8)
    found, spans = noise(row, layout.spans())[0], layout.spans()
    assert found[spans["tcp.sprt"]].tolist() == [False] * 2 + [True] * 14
    assert not found[spans["tcp.dprt"]].any()
    assert found[spans["tcp.opt"]].tolist() == [False] * 32 + [True] * 64


def test_services():
    """
    A flow's service is its transport and the responder's port, whoever speaks first; dynamic ports name none.
    """
    fields = (("tcp.sprt", 16), ("tcp.dprt", 16), ("udp.sport", 16), ("udp.dport", 16), ("icmp.type", 8))
    layout = Layout(name="test", version=1, fields=(*fields, ("trace.direction", 1)))
    nothing = [-1] * 32
    rows = [
        bits(51_000, 16) + bits(443, 16) + nothing + [-1] * 8 + [0],
        bits(443, 16) + bits(51_000, 16) + nothing + [-1] * 8 + [1],
        nothing + bits(53, 16) + bits(53, 16) + [-1] * 8 + [0],
        nothing + bits(50_000, 16) + bits(60_000, 16) + [-1] * 8 + [0],
        nothing + nothing + bits(8, 8) + [0],
        nothing + nothing + [-1] * 8 + [0],
    ]
    encoded = Encoded(
        rows=np.array(rows, np.int8),
        starts=np.arange(7),
        labels=np.repeat("x", 6),
        start_times=np.zeros(6, np.int64),
        layout=layout,
    )
    assert services(encoded) == ["tcp port 443", "tcp port 443", "udp port 53", "udp", "icmp", ""]


def test_canny_marks_edges_only():
    """
    The map is 1 along the border of two regions and 0 inside them, at the image's own size.
    """
    rows = np.full((20, 100), -1, np.int8)
    rows[:, 50:] = 1
    edges = canny(rows)
    assert edges.shape == rows.shape
    assert edges[5:15, 48:53].any()
    assert not edges[5:15, 5:40].any()


def test_edges_tell_each_bit_from_its_neighbours(packet_base, layout):
    """
    A bit that differs from both neighbours has an edge on either side, and nothing else has.
    """
    codec = checkpoint.load(str(packet_base), layout).codec
    for column in range(1, layout.width - 1):
        rows = np.zeros((8, layout.width), np.int8)
        rows[3:6, column] = 1
        assert np.flatnonzero(codec.edges(rows)[4]).tolist() == [column - 1, column]
    assert not codec.edges(np.zeros((8, layout.width), np.int8))[1:-1, 1:-1].any()


def test_flows_are_as_long_as_those_that_were_learned(packet_base, data):
    """
    Every path of the chain that is asked to end behind so many packets does, also where the chain alone would rarely.
    """
    backend = StableDiffusion(options(packet_base))
    backend.fit(data, Context())
    codec, structure = backend.checkpoint.codec, backend.structure
    found = plans(data, 32)
    for height in (16, 32):
        some = [plan for plan, (_, own, _) in zip(found, starts(found, codec), strict=True) if own == height]
        lengths = [packets for _, packets, _ in some]
        rngs = [np.random.default_rng(i) for i in range(len(some))]
        states = structure.draw(starts(some, codec), lengths, height, rngs)
        assert (states != END).sum(1).tolist() == lengths
        cut = structure.draw(starts(some, codec), lengths, 8, rngs)
        assert (cut != END).sum(1).tolist() == np.minimum(lengths, 8).tolist()
