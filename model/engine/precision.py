"""How fast this machine is in a precision. Many CPUs compute bf16 and fp16 in software, tens of times slower."""

import time

import torch

from model.engine.config import precision
from support.json_object import JsonObject

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PROBE_SECONDS = 0.1
PROBE_SIZE = 192  # rows and columns of the product that is timed: 0.1 ms in fp32, some 10 ms in software
SLOW = 1.5  # times as long as in fp32. Hardware that knows a half precision is never slower in it than in fp32


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """How many times longer a matrix product takes in `dtype` than in fp32; measured in a tenth of a second."""
    factors = {kind: torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=kind, device=device) for kind in (torch.float32, dtype)}
    seconds = {kind: float("inf") for kind in factors}
    for square in factors.values():
        square @ square  # not timed: the first product of a precision also sets its kernel up
    end = time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:
        for kind, square in factors.items():
            seconds[kind] = min(seconds[kind], _seconds(square))
    return seconds[dtype] / seconds[torch.float32]


def _seconds(square: torch.Tensor) -> float:
    began = time.perf_counter()
    square @ square
    if square.is_cuda:
        torch.cuda.synchronize(square.device)
    return time.perf_counter() - began


def software(config: JsonObject) -> str:
    """One line where this machine is slow in the precision of a DeepSpeed JSON, else nothing."""
    name = precision(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    factor = 1.0 if name == "fp32" else slowdown(DTYPES[name], device)
    if factor < SLOW:
        return ""
    kind = "GPU" if device.type == "cuda" else "CPU"
    return f"this {kind} computes {name} in software: a matrix product takes {factor:.0f} times as long as in fp32"
