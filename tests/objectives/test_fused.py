"""The kernels of the fused objective, run by Triton's interpreter on the CPU, and the joint loss on every device."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from samples import tensor_rows

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives import cs_divergence, infonce, joint_loss


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it is for CUDA, on Linux")
def test_every_kernel_in_the_interpreter() -> None:
    """In a process of its own: Triton decides at import whether kernels are compiled or interpreted."""
    cases = Path(__file__).with_name("fused_in_interpreter.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("estimator", ["v", "u"])
def test_joint_loss_is_the_sum_of_its_terms(estimator: str) -> None:
    x, y = (tensor_rows(seed, 23, 6).requires_grad_() for seed in (0, 1))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    groups = torch.arange(23) // 2
    joint = joint_loss(x, y, scale, [0.5, 0.9], 1.7, groups, estimator)  # type: ignore[arg-type]
    apart = infonce(x, y, scale, groups) + 1.7 * cs_divergence(x, y, [0.5, 0.9], estimator)  # type: ignore[arg-type]
    torch.testing.assert_close(joint, apart)
    found, expected = (torch.autograd.grad(3 * loss, (x, y, scale)) for loss in (joint, apart))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("products", "tolerance"), [("tf32", 1e-6), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_products_on_the_cpu(products: str, tolerance: float) -> None:
    """bf16 and fp16 round rows and weights; TF32 is CUDA's, and float32 here."""
    x, y = (tensor_rows(seed, 40, 16).float().requires_grad_() for seed in (0, 1))
    exact = joint_loss(x.double(), y.double(), 10.0, 0.7)
    value = joint_loss(x, y, 10.0, 0.7, products=products)  # type: ignore[arg-type]
    torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)
    for one, other in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(exact, (x, y)), strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance


def test_joint_loss_refuses_what_its_terms_refuse() -> None:
    x = tensor_rows(0, 4, 3)
    with pytest.raises(InputError, match="not pairs"):
        joint_loss(x, x[:3], 1.0, 0.5)
    with pytest.raises(InputError, match="products: unknown name 'int8'"):
        joint_loss(x, x, 1.0, 0.5, products="int8")  # type: ignore[arg-type]
