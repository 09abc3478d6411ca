"""
The ``stable-diffusion`` backend: LoRA fine-tuning and ControlNet steering of Stable Diffusion on packet images.
"""
