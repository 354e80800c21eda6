"""Row: one tensor of a table. Layout: rows with dims put in, one behind the other: shapes, offsets, sizes.

Knows no model, no kernel and no address; everything is counted in floats from the start of its section."""

from dataclasses import dataclass, field, replace
from math import prod

from . import axes as ax

ALIGN = 16  # floats: every activation row starts on a cache line; parameters are packed as in the file


@dataclass(frozen=True)
class Row:
    """One tensor of an architecture's table. `slots` is the number of layers stacked in front of `axes` ("L", "L+1"), "" = not
    stacked. decay: weight decay applies. init: zeros, ones, normal, or scaled (normal / sqrt(2L)). grad: the row whose gradient
    memory this one shares (its own by default). recompute: from this level of --recompute on (0: at no level) the row has one slot
    and is made again in backward. src: the tensor's name in Hugging Face files, with ^T where it is transposed."""

    name: str
    axes: str
    slots: str = ""
    dtype: str = "f32"
    decay: bool = False
    init: str = "zeros"
    grad: str = ""
    recompute: int = 0
    src: str = ""

    @property
    def home(self) -> str:
        return self.grad or self.name

    def at(self, recompute: int) -> "Row":
        """The row as it is planned at a level of recompute."""
        return replace(self, slots="1") if 0 < self.recompute <= recompute else self

    def label(self) -> str:
        """The shape in words: "L x (3*C, C)"."""
        return (f"{self.slots} x " if self.slots else "") + f"({self.axes})"


@dataclass(frozen=True)
class Place:
    """Where a row lies: offset in floats, number of slots (0 = not stacked) and the shape of one slot."""

    row: Row
    offset: int
    slots: int
    slot_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return ((self.slots,) if self.row.slots else ()) + self.slot_shape

    @property
    def floats(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Rows in order with their places; `floats` is the length of the whole."""

    places: dict[str, Place] = field(default_factory=dict)
    floats: int = 0

    @classmethod
    def plan(cls, rows, dims: dict[str, int], align: int = 1) -> "Layout":
        places, offset = {}, 0
        for row in rows:
            place = Place(row, offset, ax.size(row.slots, dims) if row.slots else 0, ax.shape(row.axes, dims))
            places[row.name] = place
            offset += -(-place.floats // align) * align
        return cls(places, offset)

    def __getitem__(self, name: str) -> Place:
        return self.places[name]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __iter__(self):
        return iter(self.places.values())
