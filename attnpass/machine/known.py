"""Machines to ask about without having them: ``attnpass explain --machine h100``, and the tests of selection."""

from __future__ import annotations

from attnpass.machine.machine import Machine

_VERSIONS = {"torch": "2.13.0", "triton": "3.7.1"}  # a PyTorch built for CUDA brings Triton
_CUDNN = 91900  # the cuDNN that the CUDA 13 builds of PyTorch 2.11 carry


def _nvidia(name: str, capability: str) -> Machine:
    return Machine("cuda", name=name, capability=capability, versions=_VERSIONS, cudnn=_CUDNN)


KNOWN_MACHINES = {
    "t4": _nvidia("NVIDIA T4", "sm_75"),
    "a100": _nvidia("NVIDIA A100", "sm_80"),
    "rtx4090": _nvidia("NVIDIA GeForce RTX 4090", "sm_89"),
    "h100": _nvidia("NVIDIA H100", "sm_90"),
    "b200": _nvidia("NVIDIA B200", "sm_100"),
    "rtx5090": _nvidia("NVIDIA GeForce RTX 5090", "sm_120"),
    "mi300": Machine("rocm", name="AMD Instinct MI300X", capability="gfx942", versions={"torch": "2.13.0"}),
    "ascend": Machine("npu", name="Ascend 910B", versions={"torch": "2.13.0"}),
    "tpu": Machine("tpu", name="TPU v5e", versions={"torch": "2.9.0"}),
    "cpu": Machine("cpu", name="AVX512", versions={"torch": "2.13.0"}),
}
