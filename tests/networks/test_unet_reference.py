"""The U-Net against diffusers' own model, against the published sizes, and against a posterior mean that is known."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import latentsb.networks.unet as module
from latentsb.errors import BackendError
from latentsb.networks.attention import set_attention
from latentsb.networks.unet import UNet
from latentsb.tensors import Condition, Spec

SPEC = Spec((3, 8, 12))
CONDS = {"z": Spec((7,)), "x1": SPEC}
SMALL = {"width": 16, "multipliers": (1, 2, 2), "blocks": 2, "attention": 6, "head_dim": 8}


def reference(network, channels=(16, 32, 32), dtype=torch.float64):
    """The same weights in diffusers' own model and its own attention; what it is given as a class is its embedding."""
    from diffusers.models import UNet2DModel

    model = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=channels,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    ).to(dtype)
    own = {k: v for k, v in network.state_dict().items() if not k.startswith(("time.", "conditioning."))}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith("time_embedding.") for name in missing)
    torch.nn.init.zeros_(model.time_embedding.linear_2.weight)
    torch.nn.init.zeros_(model.time_embedding.linear_2.bias)
    return model


@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"),
    [(torch.float64, "math", 1e-12), (torch.float64, "sdpa", 1e-12), (torch.float32, "auto", 1e-5)],
)
def test_it_is_the_model_of_diffusers(dtype, backend, tolerance, perturbed, normal):
    torch.manual_seed(0)
    network = perturbed(UNet(SPEC, CONDS, **SMALL).to(dtype))
    model = reference(network, dtype=dtype)
    assert set_attention(network, backend) == 2 * 2 + 1 + 2 * 3
    x, x1, z = (normal(2, *shape, seed=k).to(dtype) for k, shape in enumerate([SPEC.shape, SPEC.shape, (7,)]))
    t, cond = torch.tensor([0.2, 0.7]), Condition({"x1": x1, "z": z})
    out = network(x, t, cond)
    embedding = network.time(t) + network.conditioning.vector(cond)
    want = model(torch.cat([x, x1], 1), torch.zeros(2), class_labels=embedding.detach()).sample
    scale = want.abs().max().item()
    torch.testing.assert_close(out, want, rtol=0, atol=tolerance * scale)
    out.square().sum().backward()
    want.square().sum().backward()
    for name in ("conv_in.weight", "down_blocks.1.attentions.0.to_q.weight", "mid_block.attentions.0.group_norm.bias"):
        ours, theirs = network.get_parameter(name).grad, model.get_parameter(name).grad
        torch.testing.assert_close(ours, theirs, rtol=0, atol=10 * tolerance * theirs.abs().max().item())


def test_size_and_cost_are_those_of_adm():
    """64x64, 64 channels times (1, 2, 4, 8): 69.68 million parameters and 30.8 GFLOP in the public code of DBAE."""
    with torch.device("meta"):
        spec = Spec((3, 64, 64))
        network = UNet(spec, {"x1": spec}, width=64, multipliers=(1, 2, 4, 8), attention=32, dropout=0.1)
        count = sum(p.numel() for p in network.parameters())
        # ADM embeds times in as many numbers as channels, 64, and has no null for an absent x1; z comes on top.
        code = 512 * 256 + 256
        assert count - (256 - 64) * 256 - 3 + code == pytest.approx(69.68e6, abs=5e3)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = torch.empty(1, 3, 64, 64)
            network(x, torch.zeros(1), Condition({"x1": x}))
    assert counter.get_total_flops() == pytest.approx(30.8e9, rel=2e-3)


def test_backends_are_set_for_one_network_and_agree(monkeypatch, perturbed, normal):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()
    torch.manual_seed(0)
    first, second = (perturbed(UNet(SPEC, **SMALL).double()) for _ in range(2))
    second.load_state_dict(first.state_dict())
    ran = []

    def spy(q, k, v, *, mask=None, backend="auto"):
        ran.append((backend, tuple(q.shape)))
        return dispatch(q, k, v, mask=mask, backend=backend)

    dispatch = module.attention
    monkeypatch.setattr(module, "attention", spy)
    set_attention(first, "math")
    x, t = normal(2, *SPEC.shape).double(), torch.tensor(0.4)
    out = first(x, t, Condition())
    assert ran[0] == ("math", (2, 4, 4 * 6, 8))  # (B, H, N, D)
    assert {name for name, _ in ran} == {"math"}
    ran.clear()
    torch.testing.assert_close(second(x, t, Condition()), out, rtol=0, atol=1e-12 * out.abs().max().item())
    assert {name for name, _ in ran} == {"auto"}
    set_attention(second, "xformers")
    with pytest.raises(BackendError, match="xformers"):
        second(x, t, Condition())
    assert _AttentionBackendRegistry.get_active_backend() == before


PATTERN = 0.5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
"""B of the example below, four vectors of 16 numbers."""
SPREAD, RATE = 0.7, 1e-2
LEVELS = (0.5, 1.0)


def risk(prior, sigma):
    """Mean squared error of E[x0 | x0 + sigma eps] in each dimension for x0 ~ N(m, prior)."""
    eye = torch.eye(len(prior))
    return (sigma**2 * torch.linalg.solve(prior + sigma**2 * eye, prior)).trace().item() / len(prior)


def test_learns_a_posterior_mean_from_state_time_code_and_endpoint():
    """x0 = z B + x1 + s eta seen through noise of two levels: E[x0 | x, z, x1] = m + s²/(s² + sigma²) (x - m).

    Its error above that of the posterior mean must be less than half of what the best network makes that is blind to
    z, to x1, or to everything but m.
    """
    torch.manual_seed(0)
    spec = Spec((1, 4, 4))
    network = UNet(spec, {"z": Spec((4,)), "x1": spec}, width=16, multipliers=(1,), blocks=1, attention=4, head_dim=8)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99))
    steps, g = 250, torch.Generator().manual_seed(0)

    def draw(n):
        z, x1 = torch.randn(n, 4, generator=g), torch.randn(n, 1, 4, 4, generator=g)
        mean = (z @ PATTERN).view(n, 1, 4, 4) + x1
        x0 = mean + SPREAD * torch.randn(mean.shape, generator=g)
        sigma = torch.tensor(LEVELS)[torch.arange(n) % 2]
        s = sigma.view(-1, 1, 1, 1)
        x = x0 + s * torch.randn(x0.shape, generator=g)
        best = mean + SPREAD**2 / (SPREAD**2 + s**2) * (x - mean)
        return x0, best, (x, sigma.log() / 4, Condition({"z": z, "x1": x1}))

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        x0, _, given = draw(64)
        loss = (network(*given) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    eye = torch.eye(16)
    own, code = SPREAD**2 * eye, PATTERN.T @ PATTERN
    floor, no_code, no_end = (sum(risk(prior, s) for s in LEVELS) / 2 for prior in (own, own + code, own + eye))
    no_state = SPREAD**2
    with torch.no_grad():
        x0, best, given = draw(4096)
        out = network.eval()(*given)
    # The floor is met by the formula itself, to four standard errors of a mean of 4096 * 16 squares.
    assert (best - x0).square().mean().item() == pytest.approx(floor, abs=4 * 1.1 * floor * (2 / 4096 / 16) ** 0.5)
    excess = (out - best).square().mean().item()
    assert excess < 0.5 * (min(no_code, no_end, no_state) - floor)
