"""gpt2flat: train GPT-2 on CPUs, with every float in one flat buffer.

from gpt2flat import Model, GPT2Config, Tokenizer          (what it can do and where to read on: README.md)"""

from .arch.gpt2 import GPT2Config
from .data.tokenizer import Tokenizer
from .generation.generate import generate
from .model import Model

Model.generate = generate  # sampling lies a floor above the model

__version__ = "0.1.0"
__all__ = ["GPT2Config", "Model", "Tokenizer"]
