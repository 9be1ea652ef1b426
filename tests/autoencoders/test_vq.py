"""The vector-quantised autoencoder: its quantiser by brute force, its loss in closed form, its codebook in use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentsb.autoencoders.vq import VQ, perplexity
from latentsb.data.arrays import Digits
from latentsb.errors import ArgumentError
from latentsb.metrics.similarity import psnr
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Round

SMALL: dict[str, Any] = {"widths": (8, 16), "groups": 4, "attention": False, "codes": 24, "code_channels": 3}
IMAGES = Spec((1, 8, 8))


def made(images: Spec = IMAGES, seed: int = 0, **kwargs: Any) -> VQ:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = VQ(images, **{**SMALL, **kwargs})
        torch.nn.init.normal_(codec.model.quantize.embedding.weight, std=0.4)  # of the latents' size
    return codec


def book(codec: VQ) -> Tensor:
    weight: Tensor = codec.model.quantize.embedding.weight
    return weight.detach()


def test_perplexity_in_closed_form() -> None:
    assert perplexity(torch.tensor([0, 7, 0])).item() == 1.0
    for k in (1, 2, 10):
        assert perplexity(torch.full((k,), 3)).item() == pytest.approx(k)
    halves = perplexity(torch.tensor([[2, 1, 1, 0], [1, 1, 0, 0]]))
    torch.testing.assert_close(halves, torch.tensor([2.0**1.5, 2.0]).double())
    share = torch.tensor([0.9, 0.1])
    assert perplexity(share).item() == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))


def test_latents_are_those_before_quantisation_and_decoding_quantises() -> None:
    codec, x = made().eval(), Digits().samples[:7]
    with torch.no_grad():
        raw = codec.moments(x).mean
        torch.testing.assert_close(raw, codec.model.quant_conv(codec.model.encoder(x)))
        taken, index = codec.quantise(raw)
        distance = (raw.permute(0, 2, 3, 1)[..., None, :] - book(codec)).square().sum(-1)
        assert torch.equal(index, distance.argmin(-1))
        nearest = book(codec)[distance.argmin(-1)].permute(0, 3, 1, 2)
        torch.testing.assert_close(taken, nearest, atol=1e-6, rtol=0)
        whole = codec.model.decoder(codec.model.post_quant_conv(nearest))
        torch.testing.assert_close(codec.raw_decode(raw), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(codec.raw_decode(nearest), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(codec.model(x).sample, whole, atol=1e-5, rtol=0)
        unquantised = codec.model.decoder(codec.model.post_quant_conv(raw))
    assert (unquantised - whole).abs().max() > 1e-3
    assert codec.moments(x).std is None


def test_normalised_latents_come_back_to_the_same_codes() -> None:
    codec, x = made().eval(), Digits().samples[:64]
    with torch.no_grad():
        raw = codec.moments(x).mean
        codec.fit_normaliser([raw])
        back = codec.denormalise(codec.encode(x))
        assert torch.equal(codec.quantise(back)[1], codec.quantise(raw)[1])


def test_cached_in_full_precision_because_half_changes_codes() -> None:
    codec = made(code_channels=1, codes=2)
    with torch.no_grad():
        book(codec).copy_(torch.tensor([[1.0], [2.0002]]))
        raw = torch.full((1, 1, 4, 4), 1.5003)  # just nearer to the second; in half precision it is 1.5
        kept = raw.to(codec.latent_dtype).float()
        assert codec.quantise(raw)[1].unique().item() == codec.quantise(kept)[1].unique().item() == 1
        assert codec.quantise(raw.half().float())[1].unique().item() == 0


def test_gradient_goes_straight_through() -> None:
    """The encoder's latents receive the gradient of their codes, though these are constant around them."""
    codec, x = made().eval(), Digits().samples[:5]
    raw = codec.moments(x).mean.detach().requires_grad_()
    (straight,) = torch.autograd.grad(codec.raw_decode(raw).square().sum(), raw)
    code = book(codec)[codec.quantise(raw)[1]].permute(0, 3, 1, 2).requires_grad_()
    decoded = codec.model.decoder(codec.model.post_quant_conv(code))
    (truth,) = torch.autograd.grad(decoded.square().sum(), code)
    torch.testing.assert_close(straight, truth, rtol=1e-4, atol=1e-5)
    assert straight.abs().min() > 0


def test_loss_is_error_codebook_and_weighted_commitment() -> None:
    codec, x = made(commitment=0.7).eval(), Digits().samples[:6]
    found = codec.loss(Batch(torch.arange(6), x0=x), Draws.step(0, "loss", 0, range(6)))
    with torch.no_grad():
        raw = codec.moments(x).mean
        _, index = codec.quantise(raw)
        gap = (raw - book(codec)[index].permute(0, 3, 1, 2)).square().mean((1, 2, 3))
        decoded = codec.raw_decode(raw)
        l1 = (decoded - x).abs().mean((1, 2, 3))
    torch.testing.assert_close(found.total.detach(), l1 + 1.7 * gap)
    torch.testing.assert_close(found.terms["psnr"], psnr(decoded.clamp(-1, 1), x))
    different = torch.tensor([len(row.unique()) for row in index]).float()
    torch.testing.assert_close(found.terms["codes"], different)
    counts = torch.stack([torch.bincount(row.flatten(), minlength=24) for row in index])
    torch.testing.assert_close(found.terms["perplexity"], perplexity(counts).float())


def test_which_loss_moves_what() -> None:
    """The codebook moves towards the latents and not them; the commitment moves the latents alone, by its weight."""
    codec, x = made().eval(), Digits().samples[:6]
    encoder, codes = codec.model.quant_conv.weight, codec.model.quantize.embedding.weight

    def gradient(name: str, of: Tensor) -> Tensor | None:
        return torch.autograd.grad(
            codec.terms(x, Draws.step(0, "loss", 0, range(6)))[name].sum(), of, allow_unused=True
        )[0]

    assert gradient("codebook", encoder) is None
    assert gradient("commitment", codes) is None
    assert gradient("distance", codes) is None
    raw, found = codec.moments(x).mean.detach(), gradient("codebook", codes)
    _, index = codec.quantise(raw)
    pulls = 2 * (book(codec)[index] - raw.permute(0, 2, 3, 1)) / (3 * 16)
    truth = torch.zeros_like(book(codec)).index_add(0, index.flatten(), pulls.reshape(-1, 3))
    assert found is not None
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=1e-4)
    for weight in (0.0, 3.0):  # of the commitment, which the codes do not feel
        codec.commitment = weight
        total = codec.loss(Batch(torch.arange(6), x0=x), Draws.step(0, "loss", 0, range(6))).total.sum()
        torch.testing.assert_close(torch.autograd.grad(total, codes)[0], truth, atol=1e-6, rtol=1e-4)


def test_loss_belongs_to_rows_and_counts_both_ends() -> None:
    codec, x = made(), Digits().samples
    a, b = (Batch(torch.arange(8), x0=x[k : k + 8]) for k in (0, 8))
    draws = Draws.step(0, "loss", 0, range(8))
    whole = codec.loss(a, draws).total
    torch.testing.assert_close(codec.loss(a.select(slice(4, 8)), draws).total, whole[4:], atol=1e-5, rtol=0)
    both = codec.loss(Batch(a.index, x0=a.x0, x1=b.x0, images=a.x0), draws).total
    torch.testing.assert_close(both, (whole + codec.loss(b, draws).total) / 2, atol=1e-5, rtol=0)


def test_codes_that_no_latent_takes_become_latents() -> None:
    codec = made(codes=5, code_channels=1)
    with torch.no_grad():
        book(codec).copy_(torch.tensor([[0.0], [9.0], [1.0], [8.0], [7.0]]))
    latents = torch.tensor([[0.1], [0.8], [0.2], [1.1], [0.3]])
    assert codec.move_unused(latents, torch.tensor([0, 2, 0, 2, 0])) == 3
    torch.testing.assert_close(book(codec).flatten(), torch.tensor([0.0, 0.1, 1.0, 0.2, 0.3]))
    assert codec.move_unused(latents, torch.arange(5)) == 0


def test_codes_begin_anew_at_latents_of_the_data() -> None:
    """All but one code are far away: each becomes the latent of some image at some place, channels together."""
    codec, x = made(codes=24).eval(), Digits().samples[:20]
    with torch.no_grad():
        raw = codec.moments(x).mean.permute(0, 2, 3, 1).reshape(-1, 3)
        book(codec).copy_(torch.arange(24.0)[:, None] * 1e3 + raw.mean(0))

    class Once(Round):
        number = 0

        def simulate(self, name: str, rows: int, make: Any) -> Any:
            with torch.no_grad():
                return make(Batch(torch.arange(20), x0=x), Draws.step(0, name, 0, range(20)))

    round = Once()
    round.resumed = True
    codec.renew(round)
    assert book(codec).abs().max() > 1e4  # once is enough
    round.resumed = False
    codec.renew(round)
    apart = (book(codec)[1:, None] - raw).norm(dim=-1)
    assert apart.amin(1).max() < 1e-5
    assert len(apart.argmin(1).unique()) == 23


TRAINED = """
data: digits
autoencoder: {name: vq, widths: [8, 16], groups: 4, attention: false, codes: 256, revive: 1024}
bridge: {name: flow, network: {name: dit, patch: 2, width: 16, depth: 1, heads: 1}}
stages: [{train: autoencoder, images: 3072, batch: 64, lr: 8e-3}, {train: bridge, images: 32, batch: 16}]
train: {warmup: 0, ema: {power: 0.1}, preview_every: 1000000}
"""


def test_trains_with_most_of_its_codes_in_use(tmp_path: Path) -> None:
    """The best constant image leaves a PSNR of 11.3 dB; a codebook left to itself ends here with 62 codes, as if 29."""
    from latentsb.experiment import build
    from latentsb.recipe import Recipe
    from latentsb.run import Run
    from latentsb.trainer import Trainer

    recipe = Recipe.parse(TRAINED, label="test")
    experiment, x = build(recipe), Digits().samples
    run = Run.create(recipe, tmp_path / "run")
    Trainer(run, experiment, device="cpu").fit()
    run.close()
    codec = Run.open(tmp_path / "run").experiment().autoencoder.eval()
    assert isinstance(codec, VQ)
    with torch.no_grad():
        used = torch.bincount(codec.quantise(codec.moments(x).mean)[1].flatten(), minlength=256)
    assert perplexity(used) > 80
    assert psnr(codec.round_trip(x[:256]), x[:256]).mean() > 11.3 + 2.0


def test_moved_codes_leave_the_others_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round begins with averaged weights in place; neither the trained ones nor their average take the other's."""
    from latentsb.experiment import build
    from latentsb.recipe import Recipe
    from latentsb.run import Run
    from latentsb.stages import Session
    from latentsb.trainer import Trainer

    def renew(self: VQ, round: Any) -> None:
        if round.number:
            book(self)[3] = 5.0

    name, found, whole = "model.quantize.embedding.weight", [], Session.renew

    def watched(self: Any, *args: Any) -> None:
        if not isinstance(self.trainable, VQ):
            return whole(self, *args)
        kept = [*(values[name] for values in self.ema.values.values()), book(self.trainable)]
        before = [value.clone() for value in kept]
        whole(self, *args)
        found.append((before, [value.clone() for value in kept]))
        return None

    monkeypatch.setattr(VQ, "renew", renew)
    monkeypatch.setattr(Session, "renew", watched)
    recipe = Recipe.parse(TRAINED.replace("images: 3072", "images: 256").replace("1024", "128"), label="test")
    run = Run.create(recipe, tmp_path / "run")
    Trainer(run, build(recipe), device="cpu").fit()
    run.close()
    (average, trained), after = next((a, b) for a, b in found if not torch.equal(a[1], b[1]))
    assert not torch.equal(average, trained)
    others = torch.arange(256) != 3
    for value, moved in zip((average, trained), after, strict=True):
        assert torch.equal(moved[others], value[others])
        assert moved[3].unique().item() == 5.0


def test_weights_and_their_shape_come_from_a_folder(tmp_path: Path) -> None:
    original, x = made(images=Spec((2, 8, 8)), latent_channels=5).eval(), torch.rand(3, 2, 8, 8) * 2 - 1
    original.model.save_pretrained(tmp_path)
    codec = VQ(Spec((2, 8, 8)), weights=tmp_path)
    assert (codec.trained, original.trained, codec.latent.shape) == (True, False, (3, 4, 4))
    codec.load()
    assert codec.fingerprint() == original.fingerprint()
    torch.testing.assert_close(codec.eval().round_trip(x), original.round_trip(x), atol=0, rtol=0)
    found = VQ.completed({"weights": tmp_path, **dict.fromkeys(VQ.shape)})
    assert found == {**SMALL, "latent_channels": 5, "blocks": 1}
    with pytest.raises(ArgumentError, match=r"codes: found 512; the weights .* have 24 \(leave it out\)"):
        VQ(Spec((2, 8, 8)), weights=tmp_path, codes=512)
    with pytest.raises(ArgumentError, match="for images of 2 channels, found 3; write channels: 2 in the data"):
        VQ(Spec((3, 8, 8)), weights=tmp_path)


def test_codes_of_the_latent_s_own_channels(tmp_path: Path) -> None:
    """Published configs leave the channels of a code out; the look-up by index, which some ask for, is never used."""
    from diffusers.models import VQModel

    torch.manual_seed(0)
    theirs = VQModel(1, 1, block_out_channels=(8,), norm_num_groups=4, latent_channels=3, lookup_from_codebook=True)
    theirs.save_pretrained(tmp_path)
    codec = VQ(IMAGES, weights=tmp_path)
    codec.load()
    assert (codec.latent.shape, codec.model.config.vq_embed_dim) == ((3, 8, 8), 3)
    x = Digits().samples[:4]
    torch.testing.assert_close(codec.eval().raw_decode(codec.moments(x).mean), theirs.eval()(x).sample)
    assert codec.loss(Batch(torch.arange(4), x0=x), Draws.step(0, "loss", 0, range(4))).total.isfinite().all()


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"widths: found \(8, 15\), expected multiples of groups = 4"):
        made(widths=(8, 15))
    with pytest.raises(ArgumentError, match=r"widths: 3 resolutions divide .* 8×6; nearest that fit: 8×4 and 8×8$"):
        made(Spec((1, 8, 6)), widths=(8, 8, 8))
    with pytest.raises(ArgumentError, match=r"images: vq needs images \(C, H, W\), found samples of shape \(2,\)"):
        made(Spec((2,)))
