"""The network, one file for one mechanism, named as in the report."""

from minids.model.transformer import Model

__all__ = ["Model"]
