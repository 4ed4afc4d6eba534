"""A model of somebody else's, read a tensor at a time under the names of ours."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from model.config import GPTConfig
from model.huggingface import shapes
from support.errors import UserError

Read = Callable[[], Tensor]


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each put together when it is asked for and not kept."""

    def __init__(self, reads: Mapping[str, Read]) -> None:
        self._reads = reads

    def __getitem__(self, name: str) -> Tensor:
        """Put one together, whole."""
        return self._reads[name]()

    def __contains__(self, name: object) -> bool:
        """Whether it is there; puts nothing together."""
        return name in self._reads

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self._reads)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._reads)


@dataclass(frozen=True)
class Foreign:
    """What was found in a folder. `form` says what it is, `notes` what was assumed.

    `read` gives a parameter by our name, whole, of any dtype. The embedding has `config.vocab_size` rows.
    """

    form: str
    config: GPTConfig
    read: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters of our model by name, fp32, each when it is asked for; padding rows are zeros.

        Errors: `UserError` where one is missing, is of whole numbers, or has another shape than the
        configuration says.
        """
        for name, shape in shapes(self.config).items():
            value = self.read(name)
            if not value.is_floating_point():
                kind = str(value.dtype).removeprefix("torch.")
                raise UserError(
                    f"the numbers of {name} are {kind}: no weights as they are trained; take the model that these were "
                    "made from"
                )
            value = value.float()
            if name == "embed.weight":
                padding = self.config.padded_vocab_size - self.config.vocab_size
                value = value if not padding else _padded(value, padding)
            if value.shape != shape:
                raise UserError(
                    f"the {self.form} has {name} of shape {list(value.shape)} where its configuration says "
                    f"{list(shape)}: the two do not belong together; fetch it again"
                )
            yield name, value.contiguous()


def _padded(value: Tensor, rows: int) -> Tensor:
    result = value.new_zeros(len(value) + rows, *value.shape[1:])
    result[: len(value)] = value
    return result
