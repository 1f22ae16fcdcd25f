"""The registry: every entry is whole, builds its network, and says where its weights come from."""

import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
import torch

from ptmq.common.bits import BitGroups
from ptmq.common.errors import InputError
from ptmq.data.datasets import DATASETS
from ptmq.methods.interface import create
from ptmq.models.backbone import get_backbone
from ptmq.models.definitions.cifar_resnet import CifarResNet
from ptmq.models.definitions.folded import without_norms
from ptmq.models.zoo import BACKBONES
from tests.toys import ROOT, random_network, with_random_norms


@pytest.mark.parametrize("name", [n for n, b in BACKBONES.items() if b.checkpoint])
def test_checkpoints_name_their_hash_and_source(name):
    entry = BACKBONES[name].checkpoint
    digest = entry.sha256 or entry.tensors_sha256
    assert entry.source and (set(digest) <= set("0123456789abcdef")) and len(digest) in (8, 64, 0)
    if len(digest) == 8:  # all that its publisher gives, in the file's name
        assert digest in entry.file and entry.url.endswith(entry.file)
    if not digest:
        assert name == "vit_base_patch16_224", "the one whose publisher gives no hash"


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_an_entry_is_whole(name):
    entry = BACKBONES[name]
    assert get_backbone(name) is entry
    source = DATASETS[entry.dataset]
    assert source.classes == entry.dataset and (entry.checkpoint is None) != (entry.training is None)
    assert len(entry.mean) == len(entry.std) and all(std > 0 for std in entry.std)
    assert (entry.preprocessing is not None) == (entry.dataset == "imagenet"), "of datasets that are files"
    groups = BitGroups(*entry.groups.values())
    for method, settings in entry.settings.items():
        create(method, settings, groups.widths[:1] if method != "ptmq" else groups.widths, groups)


@pytest.mark.parametrize("name", [n for n in sorted(BACKBONES) if BACKBONES[n].dataset != "imagenet"])
def test_the_blocks_are_modules_of_the_network(name):
    entry = BACKBONES[name]
    names = [module for module, _ in random_network(entry.network).named_modules()]
    for pattern in entry.blocks:
        assert any(fnmatchcase(module, pattern) for module in names), pattern


@pytest.mark.parametrize("depth, layers", [(14, 15), (20, 21), (56, 57)])
@pytest.mark.parametrize("projection", [False, True])
def test_a_cifar_resnet_has_the_layers_of_its_name(depth, layers, projection):
    network = random_network(lambda: CifarResNet(depth, projection=projection))
    counted = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(counted) == layers - 1 + 2 * projection
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="depth must be 6n . 2. Got 21."):
        CifarResNet(21)


def test_a_folded_network_keeps_its_outputs_and_the_names_of_its_weights():
    network = with_random_norms(
        random_network(lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()))
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(x)
    folded = without_norms(network)
    torch.testing.assert_close(folded(x), expected, atol=1e-5, rtol=1e-5)
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]


def test_an_unknown_backbone_is_said():
    with pytest.raises(InputError, match="backbone 'resnet2' is unknown. Did you mean 'resnet20'"):
        get_backbone("resnet2")


def test_the_registry_and_profiles_are_read_without_torch():
    code = "import sys, ptmq.suite.profile, ptmq.models.zoo; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "torchvision"} & set(done.stdout.split())
