"""
Control images: the structure that steers a flow.

``control=class`` draws on what was learned of the class, the mean of its flows' Canny maps at each height;
``control=exemplar`` follows the map of one training flow, as the paper does (section 3.2).
"""

from __future__ import annotations

from typing import Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.model import Encoded

from .diffusion import heights, padded
from .images import ColourCodec, PacketCodec

FEWEST = 4
"""With fewer flows of one height than this a mean would be a copy: the mean over all heights is used instead."""

FLOWS_PER_CLASS = 64
EXEMPLARS = 8


@attrs.frozen(kw_only=True)
class ControlMaps:
    """
    images  label -> height -> float16[choices, channels, height, columns]; height 0 holds those for all other heights
    """

    images: dict[str, dict[int, NDArray[np.float16]]]

    def choose(self, label: str, height: int, rng: np.random.Generator) -> NDArray[np.float16]:
        """
        Return one control image (channels, height, columns) of a class, cut or padded to the height.
        """
        choices = self.images[label].get(height, self.images[label][0])
        image = choices[rng.integers(len(choices))][:, :height]
        return np.pad(image, ((0, 0), (0, height - image.shape[1]), (0, 0)))


def learn_maps(
    data: Encoded, codec: PacketCodec | ColourCodec, kind: Literal["class", "exemplar"], longest: int, context: Context
) -> ControlMaps:
    """
    Draw the Canny maps of some flows of each class, and keep means (``class``) or a few of them (``exemplar``).
    """
    height_of = np.minimum(heights(data.lengths, codec.shortest), longest)
    labels = np.unique(data.labels).tolist()
    images: dict[str, dict[int, NDArray[np.float16]]] = {}
    with context.progress("draw control maps", len(labels)) as advance:
        for label in labels:
            flows = np.flatnonzero(data.labels == label)
            flows = flows[np.linspace(0, len(flows) - 1, min(len(flows), FLOWS_PER_CLASS)).astype(int)]
            by_height = {
                int(height): np.stack(
                    [
                        codec.control(image).astype(np.float16)
                        for image in padded(data, flows[height_of[flows] == height], int(height))
                    ]
                )
                for height in np.unique(height_of[flows])
            }
            tallest = max(by_height)
            pad = ((0, 0), (0, 0))
            all_heights = np.concatenate([np.pad(m, (*pad, (0, tallest - h), (0, 0))) for h, m in by_height.items()])
            if kind == "class":
                images[label] = {h: m.mean(0, keepdims=True) for h, m in by_height.items() if len(m) >= FEWEST}
                images[label][0] = all_heights.mean(0, keepdims=True)
            else:
                images[label] = {h: m[:EXEMPLARS] for h, m in by_height.items()}
                images[label][0] = all_heights[:EXEMPLARS]
            advance()
    return ControlMaps(images=images)
