import dataclasses
import re

import pytest

from planner.hardware import CATALOGUE, find, peak_flops


@pytest.mark.parametrize(("spelt", "name"), [
    ("a100-80gb", "a100-80gb"), ("A100-80GB-SXM", "a100-80gb"), ("A100-40GB-SXM", "a100-40gb"), ("a100", "a100-80gb"),
    ("NVIDIA H100 SXM", "h100"), ("V100-SXM-32GB", "v100-32gb"), ("v100", "v100-32gb"), ("MI300X", "mi300x"),
    ("a100-40g", "a100-40gb"),
    ("8xA100 40GB", "a100-40gb"), ("MI250", "mi250x"), ("h100_sxm", "h100"),
    ("H100SXM", "h100"), ("A100SXM4", "a100-80gb"), ("DGXA100", "a100-80gb"), ("A100x8", "a100-80gb"),
    ("A100-SXM4-40GB", "a100-40gb"), ("NVIDIA H100 80GB HBM3", "h100"), ("ND_A100_v4", "a100-80gb"),
    ("Tesla V100-SXM2-16GB", "v100-16gb"), ("AMD Instinct MI300X OAM", "mi300x"), ("8xH100-SXM5", "h100"),
    ("A100 with NVLink", "a100-80gb"),
])  # fmt: skip
def test_a_gpu_is_found_however_it_is_spelt(spelt: str, name: str) -> None:
    assert find(spelt).name == name


def test_a_stated_memory_chooses_the_nearest() -> None:
    assert find("A100-SXM", 40).name == "a100-40gb"
    assert find("H100-96GB (500W, HBM2e)", nearest=True).name == "h100"


@pytest.mark.parametrize(("spelt", "words"), [
    ("h10", "there is no GPU 'h10' .* did you mean h100"), ("a100-60gb", r"no a100 with 60 GB .* a100-80gb \(80 GB\)"),
    ("a1000", "did you mean a100"), ("",  "there are a100-80gb"),
    ("GH200", "did you mean h200"), ("tpu", "there are a100-80gb, a100-40gb, h100"),
    ("H100 PCIe", "nearest is h100, which is SXM"), ("H100-NVL-94GB", "nearest is h100, which is SXM"),
    ("A100PCIe", "nearest is a100-80gb, which is SXM"),
])  # fmt: skip
def test_an_unknown_gpu_is_told_the_nearest(spelt: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find(spelt)


@pytest.mark.parametrize(("device", "dtype", "peak"), [
    ("NVIDIA A100-SXM4-80GB", "bf16", 312e12), ("NVIDIA H100 80GB HBM3", "fp16", 989.4e12),
    ("NVIDIA H200", "fp32", 66.9e12), ("Tesla V100-SXM2-32GB", "fp16", 125e12),
    ("NVIDIA H100 PCIe", "bf16", None), ("AMD EPYC 7763", "fp32", None),
])  # fmt: skip
def test_the_peak_of_what_a_driver_names(device: str, dtype: str, peak: float | None) -> None:
    assert peak_flops(device, dtype) == (None if peak is None else pytest.approx(peak))


def test_the_catalogue_is_plausible() -> None:
    """Units are easily mixed up: peaks of 100 to 3,000 TFLOP/s, links faster than a GPU's share of the network."""
    kinds = {"a100", "h100", "h200", "b200", "mi250x", "mi300x", "v100"}
    assert {name.split("-")[0] for name in CATALOGUE} == kinds
    for gpu in CATALOGUE.values():
        assert 100 <= gpu.half_tflops <= 3000 and gpu.vector_tflops < gpu.half_tflops
        assert gpu.matmul_ceiling_tflops < gpu.half_tflops and 0.5 < gpu.memory_tb_s < 10
        assert gpu.network_gb_s / gpu.gpus_per_node < gpu.link_gb_s
        assert gpu.source
        shares = ("matmul", "narrow", "memory", "attention", "link", "network", "gather", "fp8")
        rates = dataclasses.asdict(gpu.rates)
        assert all(0 < rates[share] <= 1 for share in shares)
        assert not gpu.matmul_ceiling_tflops or rates["matmul"] * gpu.half_tflops < gpu.matmul_ceiling_tflops


def test_a_hint_names_nothing_twice() -> None:
    with pytest.raises(ValueError, match="did you mean") as told:
        find("h1000")
    named = re.findall(r"[abhmv][\w-]+\d[\w-]*", str(told.value).split("did you mean ")[1])
    assert len(set(named)) == len(named) >= 1


def test_no_rate_is_above_the_best_matrix_product_that_was_measured() -> None:
    measured = [gpu for gpu in CATALOGUE.values() if gpu.matmul_ceiling_tflops]
    assert {"a100-80gb", "h100"} <= {gpu.name for gpu in measured}
    for gpu in measured:
        assert gpu.half_tflops * gpu.rates.matmul <= gpu.matmul_ceiling_tflops < gpu.half_tflops, gpu.name
