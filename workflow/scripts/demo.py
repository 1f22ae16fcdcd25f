"""A run's ONNX file of handwritten digits -> what the page docs/demo/ shows: the file, and the test images beside it.

    snakemake --cores 2 results/digits/deploy/digits_resnet/nested/default/multi/seed0.json
    python workflow/scripts/demo.py --record results/digits/deploy/digits_resnet/nested/default/multi/seed0.json

digits.json has the pixels, a byte each, the classes, how a pixel is prepared, and where the file comes from.
"""

import argparse
import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ptmq.common.files import sha256
from ptmq.data.datasets import open_images
from ptmq.export.session import Deployed
from ptmq.models.backbone import get_backbone

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "demo"
WHITE = 16  # the digits' largest pixel


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    record = json.loads(args.record.read_text())
    file = Path("/onnx/".join(args.record.as_posix().rsplit("/deploy/", 1))).with_suffix(".onnx")
    shutil.copyfile(file, args.out / "digits.onnx")
    backbone = record["run"]["backbone"]
    images, _ = open_images(backbone, "test", None)
    pixels = (images.pixels(torch.arange(len(images))) * WHITE).round().to(torch.uint8)
    (mean,), (std,) = get_backbone(backbone).mean, get_backbone(backbone).std
    about = {
        "file": "digits.onnx",
        "sha256": sha256(file),
        "bytes": file.stat().st_size,
        "fp32_bytes": record["size"]["fp32_bytes"],
        "command": f"snakemake --cores 2 {args.record.as_posix()}",
        "commit": record["commit"],
        "widths": Deployed(file).about["widths"],
        "shape": list(pixels.shape[1:]),
        "white": WHITE,
        "mean": mean,
        "std": std,
        "labels": images.labels.tolist(),
        "pixels": base64.b64encode(pixels.numpy().tobytes()).decode(),
    }
    (args.out / "digits.json").write_text(json.dumps(about) + "\n")
    print(f"{args.out}: {about['bytes']:,} bytes, {len(images)} images")


if __name__ == "__main__":
    main()
