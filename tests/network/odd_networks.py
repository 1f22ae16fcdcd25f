"""Networks that do odd things in Python: write in place, share modules, index, compute weights, attend."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs=4, outputs=4, size=3, **how):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **how)


class Net(nn.Module):
    """A stem, a body, a head: (n, 3, 8, 8) -> (n, 5); what is tested stands in `body`."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = conv(3), nn.Linear(4, 5)
        self.c, self.d, self.relu = conv(), conv(), nn.ReLU(inplace=True)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.fc(self.body(self.first(x)).mean((2, 3)))


class NormTwice(Net):
    def body(self, x):
        return self.norm(self.c(F.relu(self.norm(self.c(x)))))


class TwoNorms(Net):
    def body(self, x):
        return self.other(self.c(F.relu(self.norm(self.c(x)))))


class NormShared(Net):
    def body(self, x):
        return self.norm(self.d(F.relu(self.norm(self.c(x)))))


class ReadTwice(Net):
    def body(self, x):
        x = self.c(x)
        return self.norm(x) + x


class NormFirst(Net):
    def body(self, x):
        return self.c(F.relu(self.norm(x)) + self.other(F.relu(x)))


class AddInPlace(Net):
    def body(self, x):
        y = self.c(x)
        y.add_(x)
        return y


class ReluInPlace(Net):
    def body(self, x):
        y = self.norm(self.c(x))
        self.relu(y)
        return self.d(y) + y


class FunctionInPlace(Net):
    def body(self, x):
        y = self.c(x)
        F.relu(y, inplace=True)
        torch.sigmoid_(y[:, :2])
        F.hardtanh(y, -0.1, 0.1, True)
        return self.d(y)


class Operators(Net):
    def body(self, x):
        y = self.c(x)
        y += x
        y *= 2
        y[:, 1:] = y[:, 1:] / 2
        y[:, :1] -= 3
        return self.d(1 - y)


class Views(Net):
    """A view is written, and then what it is a view of is read; and the other way round."""

    def body(self, x):
        y = self.c(x)
        flat, part, turned = y.flatten(2), y[:, 2:], y.transpose(2, 3)
        flat.mul_(2)
        part.clamp_(min=0)
        y.sub_(0.1)
        return self.d(y + part.sum((1, 2, 3), keepdim=True) + turned + flat.mean(2)[..., None, None])


class Fill(Net):
    def body(self, x):
        y = self.c(x)
        mask = torch.zeros(8, 8)
        mask[2:4] = 1.0
        mask[3] += 1
        y.masked_fill_(mask.bool(), 0.5)
        y[0:0].zero_()
        return self.d(y) * mask


class Keywords(Net):
    def body(self, x):
        x = torch.cat(tensors=[self.c(input=x), torch.relu(input=x)], dim=1)
        return self.d(input=F.avg_pool2d(input=x.unflatten(1, (2, 4)).sum(1), kernel_size=2))


class Sizes(Net):
    """Sizes of images and their number go into shapes."""

    def body(self, x):
        n, c, h, w = x.shape
        if h % 2 == 0:
            x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)  # windows
            x = x + torch.arange(len(x), dtype=x.dtype)[:, None, None] * 0
        x = x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return self.c(x) + torch.zeros(n, 1, 1, 1, device=x.device)


class FunctionalWeights(Net):
    def __init__(self):
        super().__init__()
        self.w, self.proj_weight = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4, 4))
        self.mix = nn.Parameter(torch.randn(4, 4))

    def body(self, x):
        x = F.conv2d(x, self.w, padding=1)
        x = F.linear(x.permute(0, 2, 3, 1), self.proj_weight) @ self.mix
        return x.permute(0, 3, 1, 2)


class Standardised(Net):
    """Weight standardisation, and a parametrized weight."""

    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.d)
        self.gain = nn.Parameter(torch.rand(4, 1, 1, 1))

    def body(self, x):
        variance, mean = torch.var_mean(self.c.weight, dim=(1, 2, 3), keepdim=True)
        return self.d(F.conv2d(x, (self.c.weight - mean) * (variance + 1e-5).rsqrt() * self.gain, self.c.bias))


class OtherLayers(Net):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.up_norm, self.row = nn.BatchNorm2d(6), nn.Conv1d(6, 4, 3, bias=False)
        self.plain, self.plain_norm = nn.ConvTranspose2d(4, 4, 2, bias=False), nn.BatchNorm2d(4)
        self.reflecting = conv(padding_mode="reflect")

    def body(self, x):
        x = F.relu(self.up_norm(self.up(x)))
        x = self.row(x.flatten(2)).unflatten(2, (-1, 7))
        return self.reflecting(self.plain_norm(self.plain(x)))


class AsTokens(nn.Module):
    """(n, 3, 8, 8) -> (n, 5) over 16 tokens of 8 channels; what is tested stands in `body`."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 5)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.fc(self.body(self.embed(x).flatten(2).transpose(1, 2)))


class LinearTwice(AsTokens):
    """One linear layer behind two LayerNorms, and without one."""

    def body(self, x):
        return (self.a(self.first(x)) + self.a(self.second(x)) + self.a(x)).mean(1)


class Slices(AsTokens):
    """Some tokens behind a LayerNorm; some channels, and a mean over channels."""

    def body(self, x):
        x = self.first(x)
        y = self.second(self.b(x[:, 0]) + self.a(x.mean(1)))
        return y[:, :8] * y.mean(-1, keepdim=True)


class NormOfTokens(AsTokens):
    def body(self, x):
        return self.tokens(self.a(x)).mean(1)


class NormOfFlatTokens(AsTokens):
    def __init__(self):
        super().__init__()
        self.flat = nn.BatchNorm1d(8)

    def body(self, x):
        x = self.a(x)
        return self.flat(x.flatten(0, 1)).reshape_as(x).mean(1)


class Attention(AsTokens):
    """torch's attention in its three forms, with masks and dropout."""

    def __init__(self):
        super().__init__()
        self.own = nn.MultiheadAttention(8, 2, 0.5, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=8, vdim=8, bias=False)
        self.apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=8, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def body(self, x):
        mask = torch.ones(16, 16).triu(1).bool()
        x = x + self.own(x, x, x, attn_mask=mask, need_weights=False)[0]
        y, z = x.transpose(0, 1), (x * 2).transpose(0, 1)
        y, weights = self.cross(
            y, z, z + y, average_attn_weights=False, key_padding_mask=torch.zeros(len(x), 16).bool()
        )
        x = self.apart(x, x[..., :4], y.transpose(0, 1))[0] + weights.mean((1, 2, 3))[:, None, None]
        q = k = v = self.a(x).unflatten(2, (2, 4)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.layer(x)[:, 0]


def random(build):
    """A network with random weights and norms worth folding, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return network


def pictures(count=5):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
