"""FID's Inception: the 2015 TensorFlow graph whose pooled features the Fréchet Inception Distance is defined on.

The layers and their names are those of the weights that torch-fidelity publishes, converted from the graph, and that
torchmetrics uses too. The libraries that hold this network need torchvision and unpickle the file freely; here it
needs neither, and is checked by its digest when fetched. It differs from the Inception-v3 that was published later in
three ways: average pools leave out the padding, the last block pools by maximum, and there are 1008 logits.

Letters: B batch, H x W picture, C channels.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features.extractor import Described, checked, weights_digest
from elit_serve.files.opening import regular

PUBLISHED = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
SIDE_PX = 299


class InceptionFeatures:
    """[B, 3, H, W] -> features [B, 2048] and logits [B, 1008], without the last bias as the Inception Score wants."""

    metric = "FID"

    def __init__(self, file: Path | None, device: torch.device) -> None:
        """file: weights as torch-fidelity publishes them; None fetches them into torch's own cache."""
        source = PUBLISHED if file is None else str(file)
        if file is not None and not file.is_file():
            raise InvalidInput("features", source, "a file of weights; there is none here")
        network = Inception()
        try:
            network.load_state_dict(_read(file))
        except (OSError, URLError) as error:
            raise InvalidInput(
                "features", source, f"weights that can be fetched; give inception:PATH ({error})"
            ) from None
        except (RuntimeError, pickle.UnpicklingError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InvalidInput("features", source, f"the weights of FID's Inception: {reason}") from None
        self._source = source
        self._device = device
        self._network = network.to(device).eval().requires_grad_(False)
        self.fingerprint = weights_digest(network.state_dict())

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Described:
        features, logits = self._network(images.to(self._device, torch.float32))
        return checked(self._source, images, features, logits)


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, pads: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pads and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(c_in, c_out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class BlockA(nn.Module):
    def __init__(self, c_in: int, c_pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c_in, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(c_in, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = (
            Conv(c_in, 64, 1),
            Conv(64, 96, 3),
            Conv(96, 96, 3),
        )
        self.branch_pool = Conv(c_in, c_pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))], 1
        )


class BlockB(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c_in, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c_in, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Conv(c_in, c, 1),
            Conv(c, c, (1, 7)),
            Conv(c, 192, (7, 1)),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(c_in, c, 1), Conv(c, c, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(c, c, (1, 7)), Conv(c, c, (7, 1))
        self.branch7x7dbl_5 = Conv(c, 192, (1, 7))
        self.branch_pool = Conv(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(c_in, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(c_in, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """pools_by_maximum: as the last block of the 2015 graph does."""

    def __init__(self, c_in: int, *, pools_by_maximum: bool) -> None:
        super().__init__()
        self._pools_by_maximum = pools_by_maximum
        self.branch1x1 = Conv(c_in, 320, 1)
        self.branch3x3_1 = Conv(c_in, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c_in, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self._pools_by_maximum else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pads=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pads=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, pools_by_maximum=False), BlockE(2048, pools_by_maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> features [B, 2048], logits [B, 1008] without bias"""
        x = (resize(images * 255) - 128) / 128  # [B, 3, 299, 299]
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [B, 64, 147, 147]
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # [B, 192, 71, 71]
        x = F.max_pool2d(x, 3, 2)  # [B, 192, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [B, 288, 35, 35]
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # [B, 768, 17, 17]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 2048, 8, 8]
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


def resize(images: Tensor) -> Tensor:
    """Bilinear as in TensorFlow 1, which takes pixel i from i * size / 299: [B, C, H, W] -> [B, C, 299, 299]"""
    rows, columns = (_interpolation(size, images) for size in images.shape[2:])
    resized: Tensor = rows @ images @ columns.T
    return resized


def _interpolation(size: int, like: Tensor) -> Tensor:
    """Row i holds the weights of the pixels around i * size / 299. -> [299, size]"""
    place = torch.arange(SIDE_PX, device=like.device, dtype=like.dtype) * (size / SIDE_PX)
    low = place.floor().long()
    share = (place - low)[:, None]
    return F.one_hot(low, size) * (1 - share) + F.one_hot((low + 1).clamp(max=size - 1), size) * share


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _read(file: Path | None) -> dict[str, Tensor]:
    if file is None:
        return torch.hub.load_state_dict_from_url(PUBLISHED, map_location="cpu", check_hash=True, weights_only=True)
    weights: dict[str, Tensor] = torch.load(regular(file), map_location="cpu", weights_only=True)
    return weights
