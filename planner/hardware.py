"""GPUs that runs are planned for: their data sheets, and which share of them real training reaches.

The vendors' data sheets give the peaks. `Rates` says which share of a peak training reaches. The rates of the A100 and
the H100 were fitted to published runs (`python -m bench.planner --fit`, docs/planner.md). The other GPUs take one of
these two sets, or priors; each entry says which. Units: FLOP/s, bytes and seconds; GB is 1e9 bytes. Imports nothing
heavy.
"""

import difflib
import re
from dataclasses import dataclass, replace

from support.errors import UserError

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Rates:
    """What training reaches. Each rate is a physical quantity.

    matmul             share of the peak that a large, aligned matrix product reaches
    narrow             share of `matmul` that is left where a dimension is no multiple of 64 elements (128 bytes)
    memory             share of the memory bandwidth that element-wise kernels reach
    attention          share of the peak that fused attention reaches at head width 128
    link               share of the intra-node link's peak that a large collective reaches
    network            share of the node's network that collectives and point-to-point reach
    gather             share of the node's network that ZeRO stage 3's gathers of single layers reach
    overlap            how well communication hides behind computation, see `planner.timing.hidden`
    fp8                share of the fp8 peak, relative to `matmul`: casting costs the rest
    kernel_seconds     time of a kernel besides its work
    collective_seconds time of a collective besides its bytes
    step_seconds       time of a step besides all that: data loading, logging, clipping, stragglers
    """

    matmul: float
    narrow: float
    memory: float
    attention: float
    link: float
    network: float
    gather: float
    overlap: float
    fp8: float
    kernel_seconds: float
    collective_seconds: float
    step_seconds: float


PRIOR = Rates(
    matmul=0.80,
    narrow=0.85,
    memory=0.75,
    attention=0.45,
    link=0.70,
    network=0.60,
    gather=0.30,
    overlap=4.0,
    fp8=0.8,
    kernel_seconds=4e-6,
    collective_seconds=20e-6,
    step_seconds=0.02,
)


@dataclass(frozen=True)
class GPU:
    """One device as the framework sees it, in its usual node. Bandwidths are per direction."""

    name: str
    half_tflops: float  # dense bf16 or fp16 tensor peak
    fp8_tflops: float  # 0: none
    vector_tflops: float  # fp32 outside the tensor cores
    processors: int  # SMs or CUs
    memory_gb: float
    memory_tb_s: float
    link_gb_s: float
    gpus_per_node: int
    network_gb_s: float  # of a node
    node_watts: float  # of a node of that many GPUs, at most
    matmul_ceiling_tflops: float  # best measured matrix product, 0: not known
    source: str
    rates: Rates = PRIOR
    fused_attention: bool = True  # what software of its time uses where a source does not say
    bf16: bool = True

    @property
    def kind(self) -> str:
        """The name without the memory: rates are those of a kind."""
        return self.name.split("-")[0]


# Fitted by `python -m bench.planner --fit` to planner/published/throughput.csv, 2026-11-22.
A100 = Rates(
    matmul=0.72,
    narrow=0.917,
    memory=0.97,
    attention=0.328,
    link=0.827,
    network=0.923,
    gather=0.0833,
    overlap=3.5,
    fp8=0.8,
    kernel_seconds=5.32e-06,
    collective_seconds=1.9e-05,
    step_seconds=0.0601,
)
H100 = Rates(
    matmul=0.604,
    narrow=0.85,
    memory=0.68,
    attention=0.176,
    link=0.6,
    network=0.587,
    gather=0.675,
    overlap=1.66,
    fp8=0.731,
    kernel_seconds=4.52e-06,
    collective_seconds=2e-05,
    step_seconds=0.0469,
)
# These are priors: too few runs are published to fit more. `matmul` is chosen so that the planner meets the V100's 39
# TFLOP/s for 1.2B parameters on one GPU (arXiv:1909.08053, section 5.1), and the MI250X's 38.4, 36.1 and 32.0% of peak
# for 22B, 175B and 1T (arXiv:2312.12705, abstract). The figures are quoted from memory. The MI300X has no such figure.
V100 = replace(PRIOR, matmul=0.50)
MI250X = replace(PRIOR, matmul=0.40, attention=0.25)
MI300X = replace(PRIOR, matmul=0.50, attention=0.25)

_NVIDIA_A100 = "NVIDIA A100 data sheet, DGX A100 user guide; ceiling: ml-engineering, MAMF"
_NVIDIA_V100 = "NVIDIA V100 SXM2 data sheet, DGX-1 user guide; rates: priors that meet arXiv:1909.08053"
# half, fp8, vector TFLOP/s; processors; memory GB, TB/s; link GB/s; a node's GPUs, network GB/s, watts; ceiling
_CATALOGUE = (
    GPU("a100-80gb", 312, 0, 19.5, 108, 80, 2.039, 300, 8, 200, 6500, 271.2, _NVIDIA_A100, A100, False),
    GPU("a100-40gb", 312, 0, 19.5, 108, 40, 1.555, 300, 8, 200, 6500, 271.2, _NVIDIA_A100, A100, False),
    GPU(
        "h100", 989.4, 1978.9, 66.9, 132, 80, 3.35, 450, 8, 400, 10200, 794.5,
        "NVIDIA H100 SXM data sheet, DGX H100 user guide; ceiling: ml-engineering, MAMF", H100,
    ),
    GPU(
        "h200", 989.4, 1978.9, 66.9, 132, 141, 4.8, 450, 8, 400, 10200, 0,
        "NVIDIA H200 SXM data sheet, DGX H200 user guide; rates of the H100", H100,
    ),
    GPU(
        "b200", 2250, 4500, 75, 148, 180, 7.7, 900, 8, 400, 14300, 0,
        "NVIDIA DGX B200 data sheet; rates of the H100", H100,
    ),
    GPU(
        "mi250x", 191.5, 0, 23.95, 110, 64, 1.638, 100, 8, 100, 3200, 0,
        "AMD MI250X data sheet, one of its two dies, which is what a framework sees; network: Frontier user guide; "
        "rates: priors that meet arXiv:2312.12705", MI250X,
    ),
    GPU(
        "mi300x", 1307.4, 2614.9, 163.4, 304, 192, 5.3, 448, 8, 400, 10000, 0,
        "AMD MI300X data sheet; rates: priors", MI300X,
    ),
    GPU(
        "v100-32gb", 125, 0, 15.7, 80, 32, 0.9, 150, 8, 50, 3500, 0,
        _NVIDIA_V100,
        V100, False, False,
    ),
    GPU(
        "v100-16gb", 125, 0, 15.7, 80, 16, 0.9, 150, 8, 50, 3500, 0,
        _NVIDIA_V100,
        V100, False, False,
    ),
)  # fmt: skip
CATALOGUE = {gpu.name: gpu for gpu in _CATALOGUE}


def find(name: str, memory_gb: float | None = None, nearest: bool = False) -> GPU:
    """The GPU of that name, however it is spelt (`A100-80GB-SXM`, `h100`, `NVIDIA A100`, `8xA100SXM4`).

    A kind may have several memories. `memory_gb`, or else the memory in the name, chooses one; `nearest` also takes one
    of another size. Without a stated memory it is the first in the catalogue.
    Errors: `UserError` that names the nearest.
    """
    kinds = list(dict.fromkeys(gpu.kind for gpu in _CATALOGUE))
    # A maker, a count, a missing x or a form of the board makes no other GPU. Each other letter or digit does: GH200.
    maker, form = r"(\d+x|dgx|hgx|nvidia|tesla|amd|instinct)", r"(sxm\d?|pcie|nvl|oam|x\d+|\d+gb)"
    spelt = {kind: rf"(?<![a-z\d]){maker}*{kind.removesuffix('x')}x?{form}*(?![a-z\d])" for kind in kinds}
    kind = next((kind for kind in kinds if re.search(spelt[kind], name.lower())), None)
    if kind is None:
        # "a100" is left out where "a100-80gb" is named.
        close = difflib.get_close_matches(name.lower(), [*CATALOGUE, *kinds], n=6, cutoff=0.4)
        close = [found for found in dict.fromkeys(close) if not any(other.startswith(f"{found}-") for other in close)]
        hint = f"did you mean {' or '.join(close[:3])}?" if close else f"there are {', '.join(CATALOGUE)}"
        raise UserError(f"there is no GPU {name!r} in planner/hardware.py; {hint}")
    same = [gpu for gpu in _CATALOGUE if gpu.kind == kind]
    board = re.search(r"pcie|nvl(?!ink)", name.lower())
    if board:
        raise UserError(
            f"{name!r} is a board with a slower clock and no NVLink switch, which is not in planner/hardware.py; the "
            f"nearest is {same[0].name}, which is SXM"
        )
    stated = memory_gb or next((float(size) for size in re.findall(r"(\d+)\s*gb?\b", name.lower())), None)
    if stated is None:
        return same[0]
    if not nearest and all(gpu.memory_gb != stated for gpu in same):
        raise UserError(
            f"there is no {kind} with {stated:g} GB in planner/hardware.py; there are "
            f"{', '.join(f'{gpu.name} ({gpu.memory_gb:g} GB)' for gpu in same)}"
        )
    return min(same, key=lambda gpu: abs(gpu.memory_gb - stated))


def peak_flops(device: str, dtype: str) -> float | None:
    """FLOP/s at most of a device that a driver names so (`NVIDIA A100-SXM4-80GB`), None where it is not known.

    `dtype` is "bf16" or "fp16" for the tensor cores, or "fp32" for the other ones.
    """
    try:
        gpu = find(device, nearest=True)
    except UserError:
        return None
    return TERA * (gpu.vector_tflops if dtype == "fp32" else gpu.half_tflops)
