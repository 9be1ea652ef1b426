"""Fetching: from a server that speaks as the hub does, from any URL, from folders; and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from latentsb import weights
from latentsb.autoencoders.taesd import TAESD
from latentsb.cli import app
from latentsb.errors import DataError
from latentsb.fetch import RECORD, UnknownWeightsError, fetch, here
from latentsb.tensors import Spec

SMALL = weights.Known(
    about="a small one",
    autoencoder="kl",
    repo="someone/small",
    size=1000,
    shape={"latent_channels": 4, "widths": (8, 16), "blocks": 1, "groups": 4, "attention": False, "quant": True},
)


class Server(ThreadingHTTPServer):
    """Files of a folder, with ranges, as a plain server and as the hub; it can stop in the middle of a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, list[tuple[str, str, str | None]]()
        self.limit: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, content: bool) -> None:
        name, wanted = self.path.rsplit("/", 1)[1], self.headers.get("Range")
        self.server.asked.append((self.command, name, wanted))
        path = self.server.folder / name
        if not name or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if content:
            self.wfile.write(data[first : self.server.limit])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path / "place"))
    monkeypatch.setitem(weights.KNOWN, "small", SMALL)
    return tmp_path / "place"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A random AutoencoderKL as diffusers saves it."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape = {"block_out_channels": (8, 16), "norm_num_groups": 4, "mid_block_add_attention": False}
    AutoencoderKL(**kinds, **shape).save_pretrained(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def server(published: Path) -> Iterator[Server]:
    made = Server(published)
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def check_place(place: Path, published: Path) -> None:
    names = {"config.json", "diffusion_pytorch_model.safetensors"}
    record = json.loads((place / "small" / RECORD).read_text())
    assert record["licence"] == "MIT"
    assert {path.name for path in (place / "small").iterdir()} == {*names, RECORD} == {*record["files"], RECORD}
    for name in names:
        data = (published / name).read_bytes()
        assert record["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert (place / "small" / name).read_bytes() == data
    assert {path.name for path in place.iterdir()} == {"small", ".small.lock"}


def test_from_the_hub(place: Path, published: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    assert here("small") is None
    made = fetch("small")
    assert made.fresh
    assert here("small") == made.path == place / "small"
    assert made.origin == "huggingface.co/someone/small"
    check_place(place, published)
    asked = len(server.asked)
    again = fetch("small")
    assert not again.fresh
    assert again.files == made.files
    assert len(server.asked) == asked


def test_from_a_url_that_breaks_off(place: Path, published: Path, server: Server) -> None:
    model = "diffusion_pytorch_model.safetensors"
    whole = (published / model).stat().st_size
    server.limit = 5000
    with pytest.raises(DataError, match=f"the connection ended after 5,000 of {whole:,} bytes; repeat the command"):
        fetch("small", server.url)
    assert here("small") is None
    server.limit = None
    assert fetch("small", server.url).fresh
    check_place(place, published)
    assert [(name, wanted) for _, name, wanted in server.asked] == [
        ("config.json", None),
        (model, None),
        (model, "bytes=5000-"),
    ]


def test_from_a_folder(place: Path, published: Path) -> None:
    made = fetch("small", str(published))
    assert made.origin == str(published)
    check_place(place, published)
    with pytest.raises(DataError, match="is there already; remove it"):
        fetch("small", str(published))


def test_what_is_not_what_it_should_be_is_not_kept(place: Path, published: Path, tmp_path: Path) -> None:
    model = published / "diffusion_pytorch_model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"published has is not 'small': .* cannot be loaded"):
        fetch("small", str(published))
    model.write_bytes(whole)
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    with pytest.raises(DataError, match="missing keys"):
        fetch("small", str(published))
    with pytest.raises(DataError, match=r"found no config.json and .* in .*; put them there"):
        fetch("small", str(tmp_path))
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        fetch("small", str(tmp_path / "nowhere"))
    with pytest.raises(UnknownWeightsError, match=r"'smal'. Did you mean 'small'\?"):
        fetch("smal")
    assert [path.name for path in place.iterdir()] == [".small.lock"]


def test_another_shape_under_the_name_is_refused(place: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = weights.Known(**{**vars(SMALL), "shape": {**SMALL.shape, "widths": (8, 32)}})
    monkeypatch.setitem(weights.KNOWN, "small", wide)
    with pytest.raises(DataError, match=r"is not 'small': .* is \(16, .*, expected \(32, "):
        fetch("small", str(published))


def test_no_network_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        DataError, match=r"no connection \(.*\); repeat .*: latentsb fetch small --from FOLDER"
    ) as found:
        fetch("small")
    with pytest.raises(DataError) as pair:
        fetch("taef2")
    told = "taef2.safetensors, or taef2_encoder.safetensors and taef2_decoder.safetensors"
    assert f"put into {place / 'taef2'}: {told}; or take" in str(pair.value)
    assert "\n" not in str(found.value)
    assert {path.name for path in place.iterdir()} == {".small.lock", ".taef2.lock"}


@pytest.mark.shared
def test_the_command_on_published_files(shared_data: Path, place: Path) -> None:
    run = CliRunner().invoke
    listed = run(app(), ["fetch", "--list"]).stdout
    assert all(name in listed for name in weights.KNOWN)
    made = run(app(), ["fetch", "taef2", "--from", str(shared_data / "weights" / "taef2")])
    assert made.exit_code == 0, made.output
    assert f"taef2: 5.37 MB, in {place / 'taef2'}" in made.stdout
    assert "licence: MIT" in made.stdout
    assert "autoencoder: {name: taef2, weights: taef2}" in made.stdout
    assert f"already in {place / 'taef2'}" in run(app(), ["fetch", "taef2"]).stdout
    row = next(line for line in run(app(), ["fetch"]).stdout.splitlines() if line.strip().startswith("taef2"))
    assert row.split()[-1] == "yes"
    with pytest.raises(DataError, match=r"is not 'taesd': .* does not fit: encoder.11.pool.0.weight is unknown"):
        fetch("taesd", str(shared_data / "weights" / "taef2"))


def test_files_laid_there_by_hand_are_found(place: Path) -> None:
    codec = TAESD(Spec((3, 16, 16)))
    (place / "taesd").mkdir(parents=True)
    save_file(codec.model.state_dict(), place / "taesd" / "any.safetensors")
    made = fetch("taesd")
    assert not made.fresh
    assert list(made.files) == ["any.safetensors"]
    assert not (place / "taesd" / RECORD).exists()


def test_the_table_of_names_needs_no_torch() -> None:
    code = "import sys, latentsb.weights, latentsb.cli.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
