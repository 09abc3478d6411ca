"""
Train the embedded base: the packet autoencoder, then U-Net, text encoder and ControlNet together.

    netdiff train-base DATA... --output FOLDER
    accelerate launch -m netdiffusion_stable_diffusion.train DATA... --output FOLDER

Runs on a CPU or a GPU unchanged, and on several of several machines (Accelerate), saves a checkpoint every few minutes
and goes on from it when called again with the same output. Only flows of the train split are used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from netdiffusion_core.model import Encoded, Layout

    from .checkpoint import Checkpoint
    from .control import Structure
    from .images import PacketCodec

RECORD = "training.json"
LEARNING_RATE = 5e-4
"""Of U-Net, text encoder and ControlNet, reached in a hundred steps."""

EARLY_PACKETS = 64
"""Every second batch shows no more of a flow: a batch has two flows of 1,024 packets, or dozens of their beginnings."""

SCORED_FLOWS = 8
"""Of each class, when samples are scored."""


def train_base(
    data: Annotated[list[Path], typer.Argument(help="Folders LABEL/*.pcap; of split data only train is used.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the base, in diffusers' layout.")],
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of 512 packets.")] = 4000,
    unet_steps: Annotated[int, typer.Option(help="Steps of 2,048 packets.")] = 4000,
    longest: Annotated[int, typer.Option(help="Longest flow seen, in packets; longer ones are cut.")] = 1024,
    score_every: Annotated[int, typer.Option(help="Steps between two scorings of samples; 0: none.")] = 1000,
    minutes_between_saves: Annotated[float, typer.Option(help="How often the training state is saved.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    begin_with: Annotated[
        str, typer.Option(help="Base whose weights to go on from: embedded, or a folder. Its autoencoder stays.")
    ] = "",
    without: Annotated[str, typer.Option(help="Labels left out, comma-separated: to measure unseen classes.")] = "",
) -> None:
    """
    Train the embedded base of the stable-diffusion backend from packet captures.
    """
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    log = Log(output, minutes_between_saves, accelerator.is_main_process)
    encoded = leave_out(load_flows(data), [label for label in without.split(",") if label])
    log.record["data"] = {"flows": len(encoded), "packets": len(encoded.rows), "sha256": encoded.digest()}
    log.record["settings"] = {
        "autoencoder_steps": 0 if begin_with else autoencoder_steps,
        "unet_steps": unet_steps,
        "longest": longest,
        "seed": seed,
        "without": without,
        "begin_with": begin_with,
    }
    begun = open_base(begin_with, encoded.layout) if begin_with else None
    if begun is None:
        train_autoencoder(encoded, output, log, autoencoder_steps, seed, accelerator)
    else:
        log.record["begun_with"] = training_record(begin_with)
        if accelerator.is_main_process and not (output / "vae").is_dir():
            begun.codec.autoencoder.half().save_pretrained(output / "vae")
    accelerator.wait_for_everyone()
    train_unet(encoded, output, log, unet_steps, longest, seed, accelerator, score_every, begun)
    accelerator.print(f"The base stands in {output}.")
    accelerator.end_training()


def load_flows(folders: list[Path]) -> Encoded:
    """
    Read and encode the training flows of these folders.
    """
    import numpy as np

    from netdiffusion_core import dataset
    from netdiffusion_core.model import Encoded
    from netdiffusion_core.plugins import Plugins

    encoder = Plugins.discover().create("encoder", "nprint", {})
    parts = []
    for folder in folders:
        traffic = dataset.load(folder)
        parts.append(encoder.encode(traffic.select_flows(traffic.flows.splits != "test")))
    return Encoded(
        rows=np.concatenate([p.rows for p in parts]),
        starts=np.cumsum(np.concatenate([[0], *(p.lengths for p in parts)])),
        labels=np.concatenate([p.labels for p in parts]),
        start_times=np.concatenate([p.start_times for p in parts]),
        layout=encoder.layout,
    )


def leave_out(encoded: Encoded, labels: list[str]) -> Encoded:
    """
    Return the flows of all other labels. Raises ConfigError for a label that no flow has.
    """
    import numpy as np

    from netdiffusion_core.errors import ConfigError, did_you_mean

    known = np.unique(encoded.labels).tolist()
    for label in labels:
        if label not in known:
            raise ConfigError(f"--without {label}: no flow has this label.{did_you_mean(label, known)}")
    return encoded.select(~np.isin(encoded.labels, labels))


def open_base(name: str, layout: Layout) -> Checkpoint:
    """
    Read a base to go on from. Raises ConfigError for what is none.
    """
    from netdiffusion_core.errors import ConfigError

    from . import checkpoint
    from .images import PacketCodec

    if name != checkpoint.EMBEDDED and not Path(name).is_dir():
        raise ConfigError(f"--begin-with {name}: there is no such folder; give one of netdiff train-base, or embedded.")
    base = checkpoint.load(name, layout)
    if not (isinstance(base, checkpoint.Checkpoint) and isinstance(base.codec, PacketCodec) and base.controlnet):
        raise ConfigError(f"--begin-with {name}: this is no base of netdiff train-base, with its ControlNet.")
    return base


def training_record(name: str) -> Any:
    """
    Return how a base to go on from was trained, None where its folder does not say.
    """
    from . import checkpoint

    folder = checkpoint.EMBEDDED_FOLDER if name == checkpoint.EMBEDDED else Path(name)
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else None


class Log:
    """
    The training record (``training.json``, shipped with the base) and the clock of the checkpoints, both kept by the
    main process.
    """

    def __init__(self, folder: Path, minutes_between_saves: float, main: bool) -> None:
        self.path, self.main = folder / RECORD, main
        self.record: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.interval_s = minutes_between_saves * 60
        self.saved_at = time.monotonic()
        self.mean: dict[str, float] = {}

    def step(self, stage: str, step: int, steps: int, losses: dict[str, float]) -> None:
        """
        Keep running means; print and record them every hundred steps.
        """
        for name, value in losses.items():
            self.mean[name] = 0.98 * self.mean.get(name, value) + 0.02 * value
        if self.main and (step % 100 == 0 or step == steps):
            row = {"step": step, **{name: round(value, 4) for name, value in self.mean.items()}}
            self.record.setdefault(stage, []).append(row)
            print(stage, f"{step}/{steps}", row, time.strftime("%H:%M:%S"), flush=True)  # noqa: T201

    def score(self, step: int, figures: dict[str, float]) -> None:
        """
        Print and record what samples are worth.
        """
        self.record.setdefault("scores", []).append({"step": step, **figures})
        print("scores", step, figures, flush=True)  # noqa: T201
        self.write()

    def due(self) -> bool:
        """
        Tell whether it is time to save.
        """
        if not self.main or time.monotonic() - self.saved_at < self.interval_s:
            return False
        self.saved_at = time.monotonic()
        return True

    def finish(self, stage: str) -> None:
        """
        Close a stage.
        """
        self.mean = {}
        self.write()

    def write(self) -> None:
        """
        Write the record.
        """
        if self.main:
            self.path.write_text(json.dumps(self.record, indent=1) + "\n")


def save_state(path: Path, state: dict[str, torch.Tensor]) -> None:
    """
    Save tensors so that an interrupted save leaves the last one whole.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class Trainable:
    """
    Modules, their optimiser and step in one resumable state; safetensors, so Adam's moments are stored by name.

    Several processes begin with the same weights, each takes batches of its own, and all go down their mean gradient.
    """

    def __init__(
        self, path: Path, modules: dict[str, torch.nn.Module], learning_rate: float, accelerator: Accelerator
    ) -> None:
        import torch
        from accelerate.utils import broadcast
        from diffusers.training_utils import EMAModel

        self.path, self.accelerator, self.step = path, accelerator, 0
        self.parameters = {f"{m}.{name}": p for m, module in modules.items() for name, p in module.named_parameters()}
        broadcast([parameter.data for parameter in self.parameters.values()])
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), learning_rate, weight_decay=0.01, betas=(0.9, 0.99)
        )
        self.ema = EMAModel(self.parameters.values(), decay=0.999, use_ema_warmup=True, power=0.75)
        if path.exists():
            self.load()

    def update(self, loss: torch.Tensor) -> None:
        """
        Take one step down the gradient.
        """
        import torch

        loss.backward()
        if self.accelerator.num_processes > 1:
            self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters.values())
        self.step += 1

    def _share_gradients(self) -> None:
        """
        Replace gradients by their mean over processes; one whose batch did not need the ControlNet has none there.
        """
        import torch

        parameters = self.parameters.values()
        own = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        mean = self.accelerator.reduce(own, "mean").split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def save(self) -> None:
        """
        Save weights, moving averages, moments and the step.
        """
        import torch

        state = {"step": torch.tensor(self.step), "ema_step": torch.tensor(self.ema.optimization_step)}
        for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            state[f"weight/{name}"], state[f"ema/{name}"] = parameter.detach(), shadow
            for key, value in self.optimizer.state[parameter].items():
                state[f"{key}/{name}"] = value
        save_state(self.path, state)

    def load(self) -> None:
        """
        Go on from what `save` wrote.
        """
        import torch
        from safetensors.torch import load_file

        state = load_file(self.path)
        self.step, self.ema.optimization_step = int(state["step"]), int(state["ema_step"])
        with torch.no_grad():
            for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
                parameter.copy_(state[f"weight/{name}"])
                shadow.copy_(state[f"ema/{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[parameter] = {k: state[f"{k}/{name}"].to(parameter.device) for k in keys}
                self.optimizer.state[parameter]["step"] = state[f"step/{name}"]

    @contextmanager
    def averages(self) -> Iterator[None]:
        """
        Put the moving averages in the place of the weights for a while.
        """
        self.ema.store(self.parameters.values())
        self.ema.copy_to(self.parameters.values())
        yield
        self.ema.restore(self.parameters.values())

    def averaged(self) -> None:
        """
        Replace the weights by their moving averages, for good.
        """
        self.ema.copy_to(self.parameters.values())


def train_autoencoder(data: Encoded, output: Path, log: Log, steps: int, seed: int, accelerator: Accelerator) -> None:
    """
    Fit the packet autoencoder to single rows, classes drawn by the square root of their size.
    """
    import numpy as np
    import torch

    from .autoencoder import PacketAutoencoder, bit_weights, mix_fields, with_unary_time
    from .images import PacketCodec

    if (output / "vae").is_dir():
        return
    device, process = accelerator.device, own_number(accelerator)
    model = PacketAutoencoder(columns=data.layout.width).to(device)
    state = Trainable(output / "autoencoder.state", {"vae": model}, 1e-3, accelerator)
    spans = dict(data.layout.spans())
    rng = np.random.default_rng([seed, state.step, *process])
    if process:
        torch.manual_seed(seed + process[0])
    _, index, counts = np.unique(np.repeat(data.labels, data.lengths), return_inverse=True, return_counts=True)
    chances = np.cumsum(1 / np.sqrt(counts[index]))
    chances /= chances[-1]
    while state.step < steps:
        rows = data.rows[np.searchsorted(chances, rng.random(512))]
        rows[:8] = -1  # the row behind a flow's end
        batch = mix_fields(torch.tensor(rows), data.layout.fields).to(device)
        for group in state.optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * state.step / steps)) * min(1, (state.step + 1) / 100)
        loss, parts = model.loss(with_unary_time(batch, spans), bit_weights(batch, spans), kl_weight=0.05)
        state.update(loss)
        log.step("autoencoder", state.step, steps, parts)
        if log.due():
            state.save()
    state.averaged()
    with torch.no_grad():
        sample = torch.tensor(data.rows[np.searchsorted(chances, rng.random(20_000))], device=device)
        mean, log_variance = model.posterior(with_unary_time(sample, spans))
        model.latent_mean.copy_(mean.mean(0))
        model.latent_std.copy_((mean.var(0) + log_variance.exp().mean(0)).sqrt())
    log.record["autoencoder_field_errors"] = field_errors(PacketCodec(model.eval(), data.layout), sample)
    if accelerator.is_main_process:
        model.half().save_pretrained(output / "vae")
    log.finish("autoencoder")
    accelerator.wait_for_everyone()


def own_number(accelerator: Accelerator) -> list[int]:
    """
    Return what tells the random streams of this process from those of the main one, which has nothing to add to a seed.
    """
    return [] if accelerator.is_main_process else [accelerator.process_index]


def field_errors(codec: PacketCodec, rows: torch.Tensor) -> dict[str, float]:
    """
    Return of each field the share of packets of rows (n, columns) that have it and get a bit of it wrong which is not
    noise, or lose it.
    """
    import numpy as np
    import torch

    from .autoencoder import noise

    decoded = codec.decode(codec.encode(rows[None]), [np.random.default_rng(0)])[0]
    wrong = (torch.tensor(decoded) != rows.cpu()) & ~noise(rows.cpu(), codec.spans)
    errors = {}
    for field, _ in codec.layout.fields:
        there = (rows[:, codec.spans[field]] >= 0).all(1).cpu()
        if there.any():
            errors[field] = round(wrong[there][:, codec.spans[field]].any(1).float().mean().item(), 5)
    return errors


def train_unet(
    data: Encoded,
    output: Path,
    log: Log,
    steps: int,
    longest: int,
    seed: int,
    accelerator: Accelerator,
    score_every: int = 0,
    begun: Checkpoint | None = None,
) -> None:
    """
    Train U-Net, text encoder and ControlNet to denoise flows, with the weights of `begun` to begin with, or random
    ones; one prompt in ten is empty, for classifier-free guidance.

    A batch in four goes without ControlNet, one follows its flows' own Canny maps (``control=exemplar``), and two
    follow their structure as ``control=class`` draws it.
    """
    import numpy as np
    import torch

    from netdiffusion_core.context import Context

    from .autoencoder import PacketAutoencoder
    from .checkpoint import LAYOUT_FILE, Checkpoint, layout_record, new_base
    from .control import edge_rows, learn_structure, own_edges
    from .diffusion import batches, denoising_loss, encode_packets, places, prompt, services
    from .images import PacketCodec

    if (output / "unet").is_dir():
        return
    device, process = accelerator.device, own_number(accelerator)
    codec = PacketCodec(PacketAutoencoder.from_pretrained(output / "vae").float().to(device), data.layout)
    unet, controlnet, text_encoder, tokenizer, scheduler = new_base(codec)
    base = Checkpoint(
        unet=unet.to(device, memory_format=torch.channels_last),
        text_encoder=text_encoder.to(device),
        tokenizer=tokenizer,
        scheduler=scheduler,
        codec=codec,
        controlnet=controlnet.to(device, memory_format=torch.channels_last),
        digest="",
    )
    modules = {"unet": unet, "text_encoder": text_encoder, "controlnet": controlnet}
    if begun is not None:
        for name, module in modules.items():
            module.load_state_dict(getattr(begun, name).state_dict())
    state = Trainable(output / "unet.state", modules, LEARNING_RATE, accelerator)
    latents_of = encode_packets(data, codec, device)
    prompt_of = [prompt(*words) for words in zip(data.labels.tolist(), services(data), strict=True)]
    edges = edge_rows(data, codec, longest, Context())
    structure, state_of = learn_structure(data, edges, codec, longest)

    rng = np.random.default_rng([seed, state.step, 1, *process])
    generator = torch.Generator().manual_seed(seed + state.step + sum(process) * 1_000_003)
    cuts = sorted({min(EARLY_PACKETS, longest), longest})
    streams = [batches(data, rng, rows=2048, shortest=codec.shortest, longest=cut) for cut in cuts]
    while state.step < steps:
        flows, height = next(streams[rng.integers(len(streams))])
        latents = latents_of[places(data, flows, height)].transpose(1, 2).unsqueeze(2)
        prompts = ["" if rng.random() < 0.1 else prompt_of[flow] for flow in flows]
        steering = rng.choice(["none", "exemplar", "class", "class"])
        control = None
        if steering != "none":
            maps = (
                own_edges(data, edges, flows, height)
                if steering == "exemplar"
                else structure.own(state_of, data, flows, height)
            )
            control = torch.tensor(codec.steer(maps), device=device)
        loss = denoising_loss(base, latents, base.embed(prompts), control, generator)
        for group in state.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (state.step + 1) / 100)
        state.update(loss)
        log.step("unet", state.step, steps, {f"loss, control={steering}": loss.item()})
        if score_every and state.step % score_every == 0 and accelerator.is_main_process:
            with state.averages():
                log.score(state.step, scores(base, data, structure, longest))
        if log.due():
            state.save()
            log.write()
    if not accelerator.is_main_process:
        return
    state.save()
    state.averaged()
    text_encoder.half().save_pretrained(output / "text_encoder")
    tokenizer.save_pretrained(output / "tokenizer")
    scheduler.save_pretrained(output / "scheduler")
    (output / LAYOUT_FILE).write_text(json.dumps(layout_record(data.layout), indent=1) + "\n")
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vae": ["netdiffusion_stable_diffusion.autoencoder", "PacketAutoencoder"],
        "controlnet": ["diffusers", "ControlNetModel"],
    }
    index = {"_class_name": "StableDiffusionControlNetPipeline", **parts}
    (output / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    controlnet.half().save_pretrained(output / "controlnet")
    unet.half().save_pretrained(output / "unet")
    log.finish("unet")


def scores(base: Checkpoint, data: Encoded, structure: Structure, longest: int) -> dict[str, float]:
    """
    Return what the evaluators say of samples of the base as it is: figures to see it learn by, against flows that it is
    learning from. No rule repairs them.
    """
    import numpy as np

    from netdiffusion_core.context import Context
    from netdiffusion_core.interfaces import RealTraffic
    from netdiffusion_core.model import SampleRequest
    from netdiffusion_core.plugins import Plugins

    from .backend import Options, StableDiffusion
    from .control import count_plans, plans

    plugins, rng = Plugins.discover(), np.random.default_rng(0)
    encoder = plugins.create("encoder", "nprint", {})
    context = Context(encoder=encoder)
    shuffled = rng.permutation(len(data))
    place = np.zeros(len(data), np.int64)  # of each flow among those of its class
    for label in np.unique(data.labels):
        own = shuffled[data.labels[shuffled] == label]
        place[own] = np.arange(len(own))
    halves = [data.select(place // SCORED_FLOWS == half) for half in (0, 1)]
    train, test = (encoder.decode(cut(half, longest), rng) for half in halves)

    backend = StableDiffusion(Options())
    backend.layout, backend.checkpoint, backend.structure = data.layout, base, structure
    backend.plans = count_plans(plans(data, longest))
    request = SampleRequest(labels=tuple(halves[0].labels.tolist()), max_packets=longest, seed=0)
    made = encoder.decode(backend.sample(request, context), rng)
    found = {}
    for name in plugins.names("evaluator"):
        if name in ("fidelity", "timing", "utility"):
            for score in plugins.create("evaluator", name).evaluate(RealTraffic(train=train, test=test), made, context):
                found[score.name] = round(score.value, 4)
    return found


def cut(data: Encoded, longest: int) -> Encoded:
    """
    Return the first packets of each flow.
    """
    import attrs
    import numpy as np

    early = np.arange(len(data.rows)) - np.repeat(data.starts[:-1], data.lengths) < longest
    starts = np.append(0, np.cumsum(np.minimum(data.lengths, longest)))
    return attrs.evolve(data, rows=data.rows[early], starts=starts)


if __name__ == "__main__":
    typer.run(train_base)
