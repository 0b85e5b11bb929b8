"""minids: DeepSeek-V4, scaled down, to read, train and compare with the real one."""

from minids import threads  # noqa: F401  (first of all: before torch is loaded)
from minids.config import Config
from minids.files import MinidsError
from minids.model import Model

__all__ = ["Config", "MinidsError", "Model"]
