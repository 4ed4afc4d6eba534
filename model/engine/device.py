"""What this machine cannot do, found before any engine is built."""

import os
from pathlib import Path

import torch

from model.engine import inside
from support.errors import UserError
from support.json_object import JsonObject


def check_device(ds_config: JsonObject) -> None:
    """Refuse what this machine cannot do. Errors: `UserError` with the reason."""
    zero = ds_config.get("zero_optimization", {})
    quantised = [key for key in ("zero_quantized_weights", "zero_quantized_gradients") if zero.get(key)]
    if quantised and not torch.cuda.is_available():
        raise UserError(
            f"zero_optimization.{quantised[0]} needs a GPU: ZeRO++ quantises with CUDA kernels; switch it off"
        )
    offload = zero.get("offload_optimizer", {})
    swapped = offload.get("device") == "nvme"
    if swapped:
        _check_nvme(offload["nvme_path"])


def _kernels(ds_config: JsonObject) -> set[str]:
    """The kernels that DeepSpeed loads for a JSON."""
    zero = ds_config.get("zero_optimization", {})
    offload = zero.get("offload_optimizer", {}).get("device", "none")
    result = {"async_io"} if offload == "nvme" else set()
    if zero.get("zero_quantized_weights") or zero.get("zero_quantized_gradients"):
        result.add("quantizer")
    if not ds_config.get("optimizer", {}).get("params", {}).get("torch_adam"):
        result.add("cpu_adam" if offload != "none" else "fused_adam")
    return result


def will_compile(ds_config: JsonObject) -> str:
    """One line where DeepSpeed has kernels to compile for this JSON, with what avoids it; else nothing."""
    built = {path.stem for path in (*_extensions().glob("*/*.so"), *_extensions().glob("*/*/*.so"))}
    missing = sorted(_kernels(ds_config) - built)
    if not missing:
        return ""
    adam = "cpu_adam" in missing or "fused_adam" in missing
    remedy = "; to do without, set optimizer.params.torch_adam to true" if adam else ""
    return f"compiling {' and '.join(missing)} for DeepSpeed, minutes at the first start and never again{remedy}"


def _extensions() -> Path:
    """Where torch keeps the kernels that it compiled."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", get_default_build_root()))


def _check_nvme(folder: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"zero_optimization.offload_optimizer.nvme_path {folder} is not a folder that can be written to; make it "
            "on a fast local disk, or give another"
        )
    if not inside.can_compile("AsyncIOBuilder"):
        raise UserError(
            "offload to NVMe needs libaio with its headers (Debian: libaio-dev) and a C++ compiler; install them"
        )
