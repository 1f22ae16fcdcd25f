"""The trainer: schedules, checkpoints, what it draws, what it refuses."""

import contextlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ptmq.common.errors import InputError
from ptmq.data.images import ImagesInMemory
from ptmq.models.backbone import Training
from ptmq.training import trainer
from tests.toys import CPU, same_state, toy_network


def labelled(count: int = 96) -> ImagesInMemory:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.rand(count, 2, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1) / 4
    return ImagesInMemory(x, labels, (0.5, 0.5), (0.5, 0.5))


def trained(folder, settings: Training, stop_after: int | None = None):
    """The toy with dropout after a training, and the epochs that ran."""
    network, epochs = toy_network(), []
    network.fc = nn.Sequential(nn.Dropout(0.5), network.fc)

    def progress(epoch: int, loss: float) -> None:
        epochs.append(epoch)
        if epoch == stop_after:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        trainer.train(network, labelled(), settings, 3, CPU, progress, checkpoint=folder / "training.pt")
    return network, epochs


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, optimizer):
    settings = Training(epochs=4, batch_size=32, optimizer=optimizer, lr=1e-2, flip=True)
    state = torch.random.get_rng_state()
    whole, _ = trained(tmp_path / "whole", settings)
    interrupted, first = trained(tmp_path / "parts", settings, stop_after=2)
    parts, rest = trained(tmp_path / "parts", settings)
    assert (first, rest) == ([1, 2], [3, 4])
    assert same_state(parts, whole) and not same_state(interrupted, whole)
    assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"


def test_training_learns(tmp_path):
    network = toy_network()
    state = trainer.train(network, labelled(), Training(epochs=15, batch_size=32, lr=1e-2), 0, CPU)
    assert len(state.curve) == 15 and state.curve[-1] < 0.7 * state.curve[0]
    assert not network.training


def test_the_learning_rate_warms_up_and_falls_to_zero():
    settings = Training(lr=1.0, warmup=0.1)
    rates = [trainer.learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.01


def test_the_learning_rate_falls_in_steps():
    settings = Training(lr=1.0, warmup=0.0, decay="step", drops=(0.5, 0.75))
    rates = [trainer.learning_rate(step, 100, settings) for step in range(100)]
    assert rates == pytest.approx([1.0] * 50 + [0.1] * 25 + [0.01] * 25)


def test_a_parameter_may_learn_at_a_rate_of_its_own():
    network = toy_network()
    settings = Training(epochs=1, batch_size=32, optimizer="sgd", weight_decay=0.0)
    trainer.train(network, labelled(), settings, 0, CPU, rates={network.fc.weight: 0.0})
    start = toy_network()
    assert torch.equal(network.fc.weight, start.fc.weight) and not torch.equal(network.fc.bias, start.fc.bias)


def test_every_loss_of_a_batch_is_learned_from():
    """Two losses one after the other are one step from the sum of their gradients."""

    def whole(network, x, y, generator):
        yield 3 * network(x).square().mean()

    def parts(network, x, y, generator):
        yield network(x).square().mean()
        yield 2 * network(x).square().mean()

    networks = []
    for losses in (whole, parts):
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
        with torch.no_grad():
            network[1].weight.copy_(torch.linspace(-1, 1, 288).view(4, 72))
            network[1].bias.zero_()
        settings = Training(epochs=1, batch_size=32, optimizer="sgd", shift=0)
        trainer.train(network, labelled(), settings, 0, CPU, losses=losses)
        networks.append(network)
    torch.testing.assert_close(networks[0][1].weight, networks[1][1].weight)


@pytest.mark.parametrize("options, dtype", [({}, torch.float32), ({"autocast": True}, torch.bfloat16)])
def test_autocast_trains_in_bfloat16_and_is_off_by_default(options, dtype):
    seen = set()

    def losses(network, x, y, generator):
        logits = network(x)
        seen.add(logits.dtype)
        yield logits.float().square().mean()

    network = toy_network()
    trainer.train(network, labelled(), Training(epochs=1, batch_size=32), 0, CPU, losses=losses, **options)
    assert seen == {dtype} and {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_said():
    network = toy_network()
    network.fc.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss of epoch 1 is nan"):
        trainer.train(network, labelled(), Training(epochs=1, batch_size=32), 0, CPU)


def test_more_than_there_is_in_a_batch_is_said():
    with pytest.raises(InputError, match="batch_size must be at most the 96 images. Got 97."):
        trainer.train(toy_network(), labelled(), Training(batch_size=97), 0, CPU)


@pytest.mark.parametrize("values, message", [
    ({"optimizer": "lion"}, "optimizer 'lion' is unknown"),
    ({"decay": "linear"}, "decay 'linear' is unknown"),
    ({"border": "grey"}, "border 'grey' is unknown"),
    ({"drops": (1.5,)}, "drops must be shares between 0 and 1"),
    ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
    ({"epochs": 0}, "epochs must be at least 1"),
    ({"lr": -1.0}, "lr must be 0 or more"),
])  # fmt: skip
def test_wrong_settings_are_said(values, message):
    with pytest.raises(InputError, match=message):
        Training(**values)


class Malicious:
    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    """The only pickle that the suite reads back."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "training.pt"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(pickle.UnpicklingError):
        trainer.train(toy_network(), labelled(), Training(batch_size=32), 0, CPU, checkpoint=path)
    assert not Path("executed").exists()
