"""minids: DeepSeek-V4, scaled down, to read, train and compare with the real one."""
# ruff: noqa: I001

# first: it sets defaults that torch reads when it is loaded
from minids.system import process  # noqa: F401
from minids import cost, numerics, plain
from minids.weights.checkpoint import load
from minids.weights.save import save
from minids.config import Config
from minids.errors import MinidsError
from minids.inference.generate import generate
from minids.model import Model

__all__ = ["Config", "MinidsError", "Model", "cost", "generate", "load", "numerics", "plain",
           "save"]
