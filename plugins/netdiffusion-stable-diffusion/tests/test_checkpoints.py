"""
Real Stable Diffusion checkpoints: small, randomly initialised folders of each family, and what is refused of them.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError
from netdiffusion_core.model import SampleRequest
from netdiffusion_stable_diffusion import checkpoint
from netdiffusion_stable_diffusion.backend import Options, StableDiffusion
from netdiffusion_stable_diffusion.diffusion import denoise
from netdiffusion_stable_diffusion.images import ColourCodec
from netdiffusion_stable_diffusion.stable_diffusion_3 import Checkpoint3

FAMILIES = ("1.5", "2.1", "3", "3 without T5")
REQUEST = SampleRequest(labels=("long", "short", "short"), max_packets=64, seed=7)


def text_model(kind, width: int, layers: int = 2):
    tokenizer = checkpoint.packet_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def autoencoder(**config) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        **config,
    )


def shaken(controlnet):
    """
    A ControlNet as if it were trained: a new one's outputs are zero.
    """
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return controlnet


def write_u_net_family(folder: Path, version: str) -> None:
    """
    Stable Diffusion 1.5 predicts noise; 2.1 has a wider text encoder, heads a block, linear projections, velocity.
    """
    width = {"1.5": 16, "2.1": 24}[version]
    more = {
        "1.5": {"attention_head_dim": 2},
        "2.1": {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    }[version]
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        norm_num_groups=4,
        **more,
    )
    StableDiffusionPipeline(
        vae=autoencoder(),
        unet=unet,
        text_encoder=text_model(CLIPTextModel, width),
        tokenizer=checkpoint.packet_tokenizer(),
        scheduler=PNDMScheduler(**schedule)
        if version == "1.5"
        else DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    control = shaken(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4)))
    control.save_pretrained(folder / "controlnet")


def write_3(folder: Path, *, t5: bool) -> None:
    """
    Stable Diffusion 3 with T5 and a ControlNet like InstantX's; without T5 one like those of Stable Diffusion 3.5.
    """
    shape = {"sample_size": 16, "num_attention_heads": 2, "attention_head_dim": 8, "pooled_projection_dim": 40}
    transformer = SD3Transformer2DModel(
        **shape,
        num_layers=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        **({} if t5 else {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}),
    )
    StableDiffusion3Pipeline(
        vae=autoencoder(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        transformer=transformer,
        text_encoder=text_model(CLIPTextModelWithProjection, 16),
        tokenizer=checkpoint.packet_tokenizer(),
        text_encoder_2=text_model(CLIPTextModelWithProjection, 24, layers=3),
        tokenizer_2=checkpoint.packet_tokenizer(),
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=110, d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
        if t5
        else None,
        tokenizer_3=T5TokenizerFast() if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    like_35 = {"joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False}
    control = SD3ControlNetModel(
        **shape,
        num_layers=1,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        **({"joint_attention_dim": 48} if t5 else like_35),
    )
    shaken(control).save_pretrained(folder / "controlnet")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(0)
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp("checkpoint")
        if family.startswith("3"):
            write_3(found[family], t5=family == "3")
        else:
            write_u_net_family(found[family], family)
    return found


@pytest.fixture(params=FAMILIES, scope="module")
def folder(request, folders) -> Path:
    return folders[request.param]


def options(folder, **changes) -> Options:
    defaults = {"steps": 3, "rows_per_step": 64, "sampling_steps": 2, "threads": 1, "lora_rank": 2, "device": "cpu"}
    return Options(**{**defaults, "base": str(folder), **changes})


def fitted(folder, data, **changes) -> tuple[StableDiffusion, list[float]]:
    """
    A fine-tuned backend, and the losses that its progress showed.
    """
    notes = []

    @contextmanager
    def progress(title, total):
        yield lambda steps=1, note="": notes.append(note)

    backend = StableDiffusion(options(folder, **changes))
    backend.fit(data, Context(progress=progress))
    return backend, [float(found[1]) for note in notes if (found := re.fullmatch(r"loss (\S+)", note))]


@pytest.fixture(scope="module")
def usual(folder, data) -> tuple[StableDiffusion, list[float]]:
    torch.set_num_threads(1)
    return fitted(folder, data)


class TestFamilies:
    """
    One code path fine-tunes, samples, saves and loads all of them.
    """

    def test_save_load_sample(self, usual, tmp_path):
        """
        A loaded model samples exactly what the fitted one does.
        """
        backend, _ = usual
        flows = backend.sample(REQUEST, Context())
        backend.save(tmp_path)
        np.testing.assert_array_equal(flows.rows, StableDiffusion.load(tmp_path).sample(REQUEST, Context()).rows)
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
        assert len(flows) == 3

    def test_agrees_with_diffusers(self, folder, data, tmp_path, monkeypatch):
        """
        diffusers' own ControlNet pipeline, with our adapter, denoises the same noise to the same latents.
        """
        backend, _ = fitted(folder, data, learning_rate=0.05)
        backend.save(tmp_path)
        base, prompts = backend.checkpoint, ["pixelated network data, type-long", "pixelated network data, type-short"]
        noise = torch.randn(2, *base.codec.latent_shape(64), generator=torch.Generator().manual_seed(1))
        edges = np.random.default_rng(0).integers(0, 2, (2, 64, base.codec.columns), np.uint8) * 255
        ours = denoise(base, noise, prompts, base.steer(edges), steps=3, guidance=2.0, control_scale=0.7)

        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.mode)
        picture = torch.tensor(base.codec.steer(edges), dtype=torch.float32)
        if isinstance(base, Checkpoint3):
            control = SD3ControlNetModel.from_pretrained(folder / "controlnet")
            pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(
                folder, controlnet=control, **({} if base.t5 else {"text_encoder_3": None, "tokenizer_3": None})
            )
            steering = {"control_image": 2 * picture - 1, "height": 64, "width": 128}
        else:
            control = ControlNetModel.from_pretrained(folder / "controlnet")
            pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=control)
            pipeline.scheduler = DDIMScheduler.from_config(
                pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
            )
            steering = {"image": picture}
        arguments = {
            "prompt": prompts,
            "latents": noise,
            "num_inference_steps": 3,
            "guidance_scale": 2.0,
            "controlnet_conditioning_scale": 0.7,
            "output_type": "latent",
            **steering,
        }
        pipeline.set_progress_bar_config(disable=True)
        untuned = pipeline(**arguments).images
        pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
        torch.testing.assert_close(ours, pipeline(**arguments).images, rtol=1e-4, atol=1e-4)
        assert (ours - untuned).abs().max() > 1e-2

    def test_gradient_checkpointing(self, folder, usual, data):
        """
        It costs time and changes nothing.
        """
        assert len(usual[1]) == 3
        assert fitted(folder, data, gradient_checkpointing=True)[1] == pytest.approx(usual[1], abs=0.002)

    def test_bfloat16(self, folder, usual, data, tmp_path):
        """
        Half the memory gives about the same losses; adapters stay float32; a loaded model samples the same flows.
        """
        backend, losses = fitted(folder, data, precision="bf16")
        assert losses == pytest.approx(usual[1], rel=0.03)
        assert backend.checkpoint.denoiser.dtype == torch.bfloat16
        backend.save(tmp_path)
        adapter = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
        flows = backend.sample(REQUEST, Context())
        np.testing.assert_array_equal(flows.rows, StableDiffusion.load(tmp_path).sample(REQUEST, Context()).rows)

    def test_what_waits_is_brought_to_the_device(self, folder, data, waiting):
        """
        With offload, text encoders and autoencoder may only work where `at_work` has brought them to the device.
        """
        waiting(AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)
        fitted(folder, data)[0].sample(REQUEST, Context())

    @pytest.mark.parametrize(("family", "control"), [("1.5", "none"), ("3", "exemplar")])
    def test_pictures_are_encoded_once(self, folders, family, control, data, monkeypatch):
        """
        However often a flow comes up, the autoencoder sees it once (and its control image, where that is encoded).
        """
        seen, encode = [], AutoencoderKL.encode
        monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: seen.append(len(x)) or encode(self, x))
        backend, _ = fitted(folders[family], data, steps=10, rows_per_step=256, control=control)
        assert sum(seen) <= len(data) * (2 if family == "3" else 1)
        assert len(backend.sample(REQUEST, Context())) == 3


def test_flow_matching(folders, data):
    """
    Noisy latents lie on the straight way from data to noise, at the share that their time says.
    """
    base = checkpoint.load(str(folders["3"]), data.layout)
    latents = torch.randn(64, 16, 8, 16)
    noisy, times, target = base.noised(latents, torch.Generator().manual_seed(0))
    share = (times / 1000)[:, None, None, None]
    torch.testing.assert_close(noisy - share * target, latents, rtol=1e-4, atol=1e-4)
    assert 0 < times.min() < 500 < times.max() <= 1000


def test_nearest_colour(layout):
    """
    Colours a little off decode to the value that they are nearest to.
    """

    class Identity:
        config = attrs.make_class(
            "Config", ["block_out_channels", "scaling_factor", "shift_factor", "latent_channels"]
        )([1], 1.0, None, 3)
        dtype = torch.float32

        def enable_slicing(self):
            pass

        def decode(self, latents):
            return attrs.make_class("Output", ["sample"])(latents)

    rows = np.random.default_rng(0).integers(-1, 2, (64, layout.width)).astype(np.int8)
    colours = np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, -1]], np.float32)
    pixels = torch.tensor(colours[rows + 1]).permute(2, 0, 1)[None] + 0.4 * torch.randn(1, 3, *rows.shape).clamp(-2, 2)
    np.testing.assert_array_equal(ColourCodec(Identity(), layout).decode(pixels, [])[0], rows)


def copy(folder: Path, target: Path, *, without: str) -> None:
    for part in folder.iterdir():
        if part.name != without:
            (target / part.name).symlink_to(part)


class TestRefusals:
    """
    What cannot be used is refused in one sentence that says what to do.
    """

    def load(self, data, folder, **changes):
        return StableDiffusion(options(folder, **changes)).fit(data, Context())

    @pytest.mark.parametrize("option", ["base", "controlnet"])
    def test_missing_checkpoint_names_the_offline_way(self, folders, data, option):
        """
        No network access happens unless asked for.
        """
        where = {"base": str(folders["1.5"]), option: "nobody/no-such-model"}
        with pytest.raises(ConfigError, match=rf"copy the folder here and give its path with --set backend\.{option}="):
            self.load(data, where.pop("base"), **where)

    def test_control_without_controlnet(self, folders, data, tmp_path):
        """
        Nothing is silently unsteered.
        """
        copy(folders["1.5"], tmp_path, without="controlnet")
        with pytest.raises(ConfigError, match=r"backend\.control=none"):
            self.load(data, tmp_path)

    @pytest.mark.parametrize(
        ("index", "found"),
        [
            ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}, "FluxPipeline"),
            (
                {
                    "_class_name": "StableDiffusionXLPipeline",
                    "unet": ["diffusers", "UNet2DConditionModel"],
                    "text_encoder": ["transformers", "CLIPTextModel"],
                    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                    "vae": ["diffusers", "AutoencoderKL"],
                },
                "StableDiffusionXLPipeline",
            ),
        ],
    )
    def test_unknown_kind(self, data, tmp_path, index, found):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ConfigError, match=rf"{found}.*Known: Stable Diffusion 1\.x or 2\.x.*Stable Diffusion 3"):
            self.load(data, tmp_path)

    @pytest.mark.parametrize("text", [None, "{", "[]"])
    def test_no_model_index(self, data, tmp_path, text):
        if text is not None:
            (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(ConfigError, match="diffusers' layout"):
            self.load(data, tmp_path)

    @pytest.mark.parametrize(("family", "part"), [("1.5", "unet"), ("1.5", "tokenizer"), ("3", "tokenizer_2")])
    def test_missing_part(self, folders, data, tmp_path, family, part):
        copy(folders[family], tmp_path, without=part)
        with pytest.raises(ConfigError, match=f"lacks {part}/"):
            self.load(data, tmp_path)
        (tmp_path / part).mkdir()
        with pytest.raises(ConfigError, match=r"config\.json" if part == "unet" else "holds no vocabulary"):
            self.load(data, tmp_path)

    @pytest.mark.parametrize("part", ["unet", "text_encoder"])
    def test_missing_weights(self, folders, data, tmp_path, part):
        """
        A part that is not whole would go on with random weights.
        """
        copy(folders["1.5"], tmp_path, without=part)
        shutil.copytree(folders["1.5"] / part, tmp_path / part)
        [path] = (tmp_path / part).glob("*.safetensors")
        weights = load_file(path)
        del weights[next(iter(weights))]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=f"{part} lacks 1 weights"):
            self.load(data, tmp_path)

    @pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "controlnet"])
    def test_pickled_weights(self, folders, data, tmp_path, part):
        copy(folders["1.5"], tmp_path, without=part)
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text((folders["1.5"] / part / "config.json").read_text())
        (tmp_path / part / "diffusion_pytorch_model.bin").write_bytes(b"")
        with pytest.raises(ConfigError, match=rf"{part} holds pickled weights only"):
            self.load(data, tmp_path)

    @pytest.mark.parametrize(
        ("base", "other", "reason"),
        [
            ("1.5", "2.1", "cross_attention_dim is 24, and 16 is needed"),
            ("1.5", "3", "holds a SD3ControlNetModel, and a ControlNetModel is needed"),
            ("3", "1.5", "holds a ControlNetModel, and a SD3ControlNetModel is needed"),
        ],
    )
    def test_controlnet_of_another_family(self, folders, data, base, other, reason):
        with pytest.raises(ConfigError, match=reason):
            self.load(data, folders[base], controlnet=str(folders[other] / "controlnet"))

    def test_float16_without_gpu(self, folders, data):
        with pytest.raises(ConfigError, match=r"backend\.precision=fp16 needs a GPU"):
            self.load(data, folders["1.5"], precision="fp16")
