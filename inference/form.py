"""In which form a model is exported. Imports no torch."""

import re
from dataclasses import dataclass

from support.errors import UserError

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # as torch calls them
FORMATS = ("hf", "gguf", "adapter")
QUANTS = ("f32", "q8_0", "q4_0")  # of GGUF: as it is; 8 and 4 bits a weight, and a scale for each 32 of them
SHARD_SIZE = "5GB"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Form:
    """A Hugging Face folder with weights of a dtype, in shards of a size; a GGUF, quantised; or the adapters of a run
    as peft has them. None is the default.

    Errors: `UserError` for what does not go with the format, and for a size that is none.
    """

    format: str = "hf"
    dtype: str | None = None
    shard_size: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        others = {
            "hf": ("quantize",),
            "gguf": ("dtype", "shard_size"),
            "adapter": ("dtype", "shard_size", "quantize"),
        }[self.format]
        for name in others:
            if (value := getattr(self, name)) is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {value} does not go with --format {self.format}; leave it out")
        assert self.shard_bytes and self.torch_dtype

    @property
    def torch_dtype(self) -> str:
        """torch's name of the dtype."""
        return DTYPES[self.dtype or "fp32"]

    @property
    def shard_bytes(self) -> int:
        """The most bytes of a shard, unless one tensor alone has more."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", (self.shard_size or SHARD_SIZE).upper())
        size = int(float(found[1]) * UNITS[found[2]]) if found else 0
        if not size:
            raise UserError(f"--shard-size {self.shard_size} is no size; write it as 5GB or 500MB")
        return size
