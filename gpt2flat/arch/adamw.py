"""The optimizer as data: the one-element rows that change between updates. They lie in the scratch section, in front of the
work space that the kernels share."""

from ..memory.layout import Row

KNOBS = tuple(Row(name, "1") for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "no_decay", "correction1", "correction2",
                                          "grad_scale", "norm"))  # fmt: skip
SCRATCH = (*KNOBS, Row("scratch", "S"))  # S floats of work space
