"""
The backend on small, randomly initialised checkpoints of both families: it trains, samples, saves and refuses.

What the embedded base is worth is not asked here: the evaluators' report says that.
"""

from __future__ import annotations

import json
import subprocess
import sys

import attrs
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError, DataError, NotFittedError
from netdiffusion_core.model import Encoded, Layout, SampleRequest
from netdiffusion_stable_diffusion import checkpoint
from netdiffusion_stable_diffusion.autoencoder import (
    TIME,
    PacketAutoencoder,
    noise,
    with_binary_time,
    with_unary_time,
)
from netdiffusion_stable_diffusion.backend import Options, StableDiffusion
from netdiffusion_stable_diffusion.diffusion import denoising_loss, padded, prompt, services
from netdiffusion_stable_diffusion.images import ColourCodec, canny

LAYOUT = Layout(
    name="test",
    version=1,
    fields=(("ipv4.tl", 16), ("ipv4.id", 16), ("tcp.sprt", 16), ("udp.sport", 16), ("trace.iat_us", 64)),
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> Encoded:
    """
    Two classes: "long" has TCP columns and 10 to 20 packets, "short" has UDP columns and 2 to 6.
    """
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(10, 21, 12), rng.integers(2, 7, 12)])
    labels = np.repeat(["long", "short"], 12)
    rows = rng.integers(0, 2, (lengths.sum(), LAYOUT.width)).astype(np.int8)
    long = np.repeat(labels, lengths) == "long"
    rows[long, LAYOUT.span("udp")] = -1
    rows[~long, LAYOUT.span("tcp")] = -1
    return Encoded(
        rows=rows,
        starts=np.cumsum([0, *lengths]),
        labels=labels,
        start_times=np.zeros(24),
        layout=LAYOUT,
    )


def write_text_model(folder, width: int) -> None:
    tokenizer = checkpoint.packet_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


def small_unet(channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


@pytest.fixture(scope="module")
def packet_base(tmp_path_factory):
    """
    A folder like the embedded base, untrained.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("packet-base")
    unet = small_unet(16)
    unet.save_pretrained(folder / "unet")
    PacketAutoencoder(columns=LAYOUT.width, latent_channels=16, hidden=32).save_pretrained(folder / "vae")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    control = ControlNetModel.from_unet(unet, conditioning_channels=16, conditioning_embedding_out_channels=(16,))
    control.save_pretrained(folder / "controlnet")
    write_text_model(folder, 16)
    (folder / "layout.json").write_text(json.dumps(checkpoint.layout_record(LAYOUT)))
    vae = ["netdiffusion_stable_diffusion.autoencoder", "PacketAutoencoder"]
    (folder / "model_index.json").write_text(json.dumps({"vae": vae}))
    return folder


@pytest.fixture(scope="module")
def picture_base(tmp_path_factory):
    """
    A folder like Stable Diffusion 1.5, small and untrained: AutoencoderKL, PNDM, noise prediction.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("picture-base")
    text, tokens = CLIPTextModel, checkpoint.packet_tokenizer()
    write_text_model(folder, 16)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=2,
        ),
        unet=small_unet(4),
        text_encoder=text.from_pretrained(folder / "text_encoder"),
        tokenizer=tokens,
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


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

    def test_seed_moves_every_flow(self, packet_base, data):
        """
        Another seed gives other flows.
        """
        backend = StableDiffusion(options(packet_base))
        backend.fit(data, Context())
        one, two = (backend.sample(attrs.evolve(REQUEST, seed=s), Context()) for s in (1, 2))
        assert one.digest() != two.digest()

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

    def test_longer_flows_are_cut(self, packet_base, data):
        """
        max_packets holds.
        """
        backend = StableDiffusion(options(packet_base))
        backend.fit(data, Context())
        assert backend.sample(attrs.evolve(REQUEST, max_packets=3), Context()).lengths.max() <= 3


class TestPictureBase:
    """
    Stable Diffusion 1.x and 2.x: the same code path, with colours.
    """

    def test_fit_and_sample(self, picture_base, data, tmp_path):
        """
        A folder in Stable Diffusion's own layout is fine-tuned, sampled and loaded again.
        """
        backend = StableDiffusion(options(picture_base, control="none", steps=2))
        backend.fit(data, Context())
        fitted = backend.sample(REQUEST, Context())
        backend.save(tmp_path)
        np.testing.assert_array_equal(fitted.rows, StableDiffusion.load(tmp_path).sample(REQUEST, Context()).rows)

    def test_canny_controlnet(self, picture_base, data, tmp_path):
        """
        A ControlNet folder of the checkpoint's family is taken; it reads Canny maps in pixels.
        """
        unet = UNet2DConditionModel.from_pretrained(picture_base, subfolder="unet")
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4)).save_pretrained(tmp_path)
        backend = StableDiffusion(options(picture_base, controlnet=str(tmp_path), steps=1))
        backend.fit(data, Context())
        assert len(backend.sample(REQUEST, Context())) == 5

    def test_control_without_controlnet_is_refused(self, picture_base, data):
        """
        Nothing is silently unsteered.
        """
        with pytest.raises(ConfigError, match=r"backend\.control=none"):
            StableDiffusion(options(picture_base)).fit(data, Context())

    def test_nearest_colour(self):
        """
        Colours a little off decode to the value that they are nearest to.
        """

        class Identity:
            config = attrs.make_class("Config", ["block_out_channels", "scaling_factor", "latent_channels"])(
                [1], 1.0, 3
            )
            dtype = torch.float32

            def decode(self, latents):
                return attrs.make_class("Output", ["sample"])(latents)

        rows = np.random.default_rng(0).integers(-1, 2, (64, LAYOUT.width)).astype(np.int8)
        colours = np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, -1]], np.float32)
        pixels = torch.tensor(colours[rows + 1]).permute(2, 0, 1)[None] + 0.4 * torch.randn(1, 3, *rows.shape).clamp(
            -2, 2
        )
        np.testing.assert_array_equal(ColourCodec(Identity(), LAYOUT).decode(pixels, [])[0], rows)


class TestRefusals:
    """
    What cannot be used is refused in one sentence.
    """

    def test_sample_before_fit(self):
        with pytest.raises(NotFittedError):
            StableDiffusion().sample(REQUEST, Context())

    def test_unknown_class(self, packet_base, data):
        backend = StableDiffusion(options(packet_base, steps=1))
        backend.fit(data, Context())
        with pytest.raises(DataError, match="Did you mean 'short'"):
            backend.sample(SampleRequest(labels=("shrt",), max_packets=8, seed=0), Context())

    def test_other_layout(self, packet_base, data):
        other = attrs.evolve(data, layout=attrs.evolve(LAYOUT, version=2))
        with pytest.raises(DataError, match="version 1"):
            StableDiffusion(options(packet_base)).fit(other, Context())

    def test_missing_checkpoint_names_the_offline_way(self, data):
        """
        No network access happens unless asked for.
        """
        with pytest.raises(ConfigError, match=r"copy the folder here"):
            StableDiffusion(options("nobody/no-such-model")).fit(data, Context())

    def test_damaged_model_folder(self, packet_base, data, tmp_path):
        backend = StableDiffusion(options(packet_base, steps=1))
        backend.fit(data, Context())
        backend.save(tmp_path)
        (tmp_path / "control.safetensors").write_bytes(b"\x00" * 30)
        with pytest.raises(DataError, match="not a model"):
            StableDiffusion.load(tmp_path)

    def test_unusable_device(self, packet_base, data):
        with pytest.raises(ConfigError, match="cuda:77"):
            StableDiffusion(options(packet_base, device="cuda:77")).fit(data, Context())


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


def test_registration_imports_no_torch():
    """
    Listing plugins stays fast.
    """
    code = "import sys, netdiffusion_stable_diffusion.plugin as p; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
