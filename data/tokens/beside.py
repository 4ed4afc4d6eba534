"""Files that lie beside shards, with a row for each token: the weights of labels, or what a teacher says of a token.

`<prefix><suffix>` holds the rows of a shard end to end, without a header, in the order of the tokens of `.bin`. So a
reader asks for the same places as it asks of the shards, and whatever packs, blends or resumes tokens does so with
what lies beside them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data.tokens.shards import AGAIN, Shards, with_suffix
from support.errors import UserError


class Beside:
    """The rows beside the tokens of `shards`: numbers of type `dtype`, or `columns` of them a row; mapped, not read.

    Errors: `UserError` where a file is missing, or has not a row for each token.
    """

    def __init__(self, shards: Shards, suffix: str, dtype: DTypeLike, columns: int | None = None) -> None:
        self.shards, self.dtype = shards, np.dtype(dtype)
        self.row = () if columns is None else (columns,)  # the shape of a row
        self.parts = [self._mapped(with_suffix(each.prefix, suffix), each.num_tokens) for each in shards.shards]

    def _mapped(self, path: Path, count: int) -> NDArray[Any]:
        if not path.exists():
            raise UserError(f"{path} does not exist; {AGAIN}")
        wanted = count * self.dtype.itemsize * int(np.prod(self.row, dtype=np.int64))
        if (size := path.stat().st_size) != wanted:
            raise UserError(f"{path} has {size:,} bytes where its shard needs {wanted:,}; {AGAIN}")
        return np.memmap(path, self.dtype, "r", shape=(count, *self.row)).view(np.ndarray)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The rows [n, …] beside the tokens from `start` to `stop` or to the end; a view where one file has all."""
        parts = [self.parts[home][place] for home, place in self.shards.spans(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *self.row), self.dtype)
