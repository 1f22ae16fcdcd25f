"""A folder of images as a dataset: its layout, splits, classes and hashes, and datasets of other packages."""

from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

from ptmq.common.errors import InputError
from ptmq.data import datasets
from ptmq.data.folder import contents, files_of
from ptmq.models.backbone import Backbone, Preprocessing
from ptmq.models.zoo import BACKBONES

RESNET = BACKBONES["resnet18"]


def picture(path, value: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    """A plain picture, (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """20 training images of two classes, three of val; a note that is no image."""
    for label, name in enumerate(("ant", "bee")):
        for number in range(10):
            picture(tmp_path / "train" / name / f"{number}.jpg", 20 * number + label)
    for file in ("ant/1.PNG", "bee/1.png", "bee/2.jpeg"):
        picture(tmp_path / "val" / file)
    (tmp_path / "train/ant/notes.txt").write_text("not an image")
    return tmp_path


def labels(files) -> list[tuple[str, int]]:
    return [(path.parent.name, label) for path, label in files]


def test_the_splits_are_train_a_tenth_of_it_and_val(root):
    train, heldout, test = (files_of(root, split) for split in ("train", "heldout", "test"))
    assert len(train) == 18 and len(heldout) == 2 and not set(train) & set(heldout)
    assert heldout == files_of(root, "heldout"), "drawn once"
    assert set(labels(train)) == {("ant", 0), ("bee", 1)} and labels(test)[0] == ("ant", 0)
    assert all(path.parent.parent.name == "val" for path, _ in test)


def test_with_val_and_test_settings_are_chosen_on_val(root):
    picture(root / "test/ant/1.jpg")
    assert all(path.parent.parent.name == "test" for path, _ in files_of(root, "test"))
    assert all(path.parent.parent.name == "val" for path, _ in files_of(root, "heldout"))
    assert len(files_of(root, "train")) == 20, "nothing is held out of it"


def test_a_class_that_a_part_lacks_still_counts(root):
    picture(root / "test/bee/1.jpg")
    assert labels(files_of(root, "test")) == [("bee", 1)]


def test_images_come_as_the_backbone_wants_them(root):
    images = datasets.load(f"folder:{root}", "test", root, RESNET)
    x, y = images.batch(torch.arange(len(images)))
    assert x.shape == (len(images), 3, 224, 224) and y.tolist() == images.labels.tolist()
    black = -torch.tensor(RESNET.mean) / torch.tensor(RESNET.std)
    torch.testing.assert_close(x[0, :, 100, 100], black)
    assert images.classes == 2


@pytest.mark.parametrize("squash, white", [(True, 20), (False, 40)])
def test_squashed_images_lose_no_border(tmp_path, squash, white):
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :20] = 255  # a quarter on the left: outside of the centre crop
    (tmp_path / "val/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "val/a/1.png")
    entry = Backbone("", "", (), (0,) * 3, (1,) * 3, preprocessing=Preprocessing(40, 40, squash=squash))
    x, _ = datasets.load(f"folder:{tmp_path}", "test", tmp_path, entry).batch(torch.tensor([0]))
    assert bool(x[0, 0, 20, 5] > 0.5) == squash and x[0, 0, 20, 30] == 0


def test_the_hash_is_of_the_content(root):
    before = contents(root)
    assert set(before) == {f"{root.name}/train", f"{root.name}/val"} and contents(root) == before
    picture(root / "train/ant/0.jpg", 200)
    after = contents(root)
    assert [before[part] == after[part] for part in before] == [False, True]


def test_a_folder_may_be_given_by_its_path(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert datasets.dataset_named(root.name) == datasets.dataset_named(f"folder:{root.name}") == f"folder:{root}"
    assert datasets.dataset_named("digits") == "digits"


@pytest.mark.parametrize("remove, message", [
    (("train", "val"), "has no images in the standard layout: train/<class>/\\*.jpg, and val/<class>/\\*.jpg or"),
    (("val",), "has no images for test. It must have val/<class>/\\*.jpg or test/<class>/\\*.jpg."),
])  # fmt: skip
def test_what_is_missing_is_said(root, remove, message):
    for part in remove:
        (root / part).rename(root / f"no_{part}")
    with pytest.raises(InputError, match=message):
        datasets.fetch(f"folder:{root}", root)
        datasets.load(f"folder:{root}", "test", root, RESNET)


def test_a_network_must_tell_as_many_classes_apart(root):
    from ptmq.suite.evaluation import of_the_classes

    images = datasets.load(f"folder:{root}", "test", root, RESNET)
    assert of_the_classes(images, fp := torch.zeros(1, 2)) is fp
    with pytest.raises(InputError, match="tells 1000 classes apart, and the folder of images has 2"):
        of_the_classes(images, torch.zeros(1, 1000))


def test_a_list_says_which_outputs_are_meant(root):
    (root / "val.txt").write_text("val/bee/1.png 309\n")
    images = datasets.load(f"folder:{root}", "test", root, RESNET)
    assert images.labels.tolist() == [309] and images.classes is None


OWN = datasets.DATASETS["digits"]  # what another package's module would hold


def test_a_dataset_of_another_package_is_found_by_its_name(monkeypatch):
    points = [
        metadata.EntryPoint("mine", f"{__name__}:OWN", datasets.GROUP),
        metadata.EntryPoint("broken", "no_such_module:OWN", datasets.GROUP),
        metadata.EntryPoint("other", f"{__name__}:RESNET", datasets.GROUP),
    ]
    monkeypatch.setattr(datasets, "entry_points", lambda group: metadata.EntryPoints(points))
    assert datasets.get_dataset("mine") is OWN
    with pytest.raises(InputError, match="ptmq.datasets 'broken' .* could not be imported: ModuleNotFoundError"):
        datasets.get_dataset("broken")
    with pytest.raises(InputError, match="ptmq.datasets 'other' .* must be a DatasetSource. Got a Backbone."):
        datasets.get_dataset("other")
    with pytest.raises(InputError, match="dataset 'digit' is unknown. Did you mean 'digits'"):
        datasets.get_dataset("digit")
