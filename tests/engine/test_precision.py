from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from elit_serve.engine.checkpoint import TORCH_DTYPES, load_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.precision import Quantization, choose_dtype, precision_name
from elit_serve.engine.profile.profiler import file_name
from elit_serve.errors import InvalidInput
from elit_serve.files.measured import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def set_capability(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, minor))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Test")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [(CPU, None, torch.float32), (GPU, None, torch.bfloat16), (GPU, "float16", torch.float16)],
)
def test_without_quantisation_the_device_chooses_unless_a_dtype_is_given(
    device: torch.device, dtype: str | None, expected: torch.dtype
) -> None:
    assert choose_dtype(device, dtype, None) == expected


def test_fp8_runs_the_rest_in_bfloat16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_capability(monkeypatch, 9, 0)
    assert choose_dtype(GPU, None, "fp8") == torch.bfloat16
    assert choose_dtype(GPU, "bfloat16", "fp8") == torch.bfloat16
    with pytest.raises(InvalidInput, match=r"dtype: 'float32' .* bfloat16"):
        choose_dtype(GPU, "float32", "fp8")


def test_an_older_gpu_is_refused_with_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    set_capability(monkeypatch, 8, 0)
    with pytest.raises(InvalidInput, match=r"quantize: 'fp8' .* 8\.9 or newer, and this is NVIDIA Test \(8\.0\)"):
        choose_dtype(GPU, None, "fp8")


def test_a_cpu_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"quantize: 'fp8' .* and this is a CPU"):
        Pipeline.load(tmp_path / "nothing", device="cpu", quantize="fp8")


def test_an_unknown_quantisation_is_refused() -> None:
    with pytest.raises(InvalidInput, match="quantize: 'int4' is not allowed; one of fp8"):
        choose_dtype(CPU, None, "int4")


def test_every_precision_has_a_name_that_files_allow() -> None:
    names = [precision_name(dtype, None) for dtype in TORCH_DTYPES.values()]
    names += [precision_name(torch.bfloat16, quantised) for quantised in get_args(Quantization)]
    assert tuple(names) == get_args(Precision)


def test_pictures_and_measurements_tell_fp8_from_the_rest(tiny_model_dir: Path) -> None:
    plain, quantised = (
        Pipeline(load_checkpoint(tiny_model_dir), device=CPU, dtype=torch.float32, quantize=quantize)
        for quantize in (None, "fp8")
    )
    assert plain.generate("tulip").facts["dtype"] == "float32"
    assert quantised.generate("tulip").facts["dtype"] == "fp8"
    assert file_name(quantised) == file_name(plain).replace(".json", "-fp8.json")
