"""gpt2flat: train GPT-2 on CPUs, with every float in one flat buffer.

from gpt2flat import Model, GPT2Config          (design and reading order: README.md)"""

from .arch.gpt2 import GPT2Config
from .model import Model

__version__ = "0.1.0"
__all__ = ["GPT2Config", "Model"]
