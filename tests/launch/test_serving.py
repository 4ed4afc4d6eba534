"""`stagecraft serve`: what is checked before, and a real server that answers and ends."""

import dataclasses
import http.client
import importlib.util
import json
import os
import shlex
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import serve as command
from data.tokens import tokenisers
from inference import export
from inference.served import Served, as_hub, look_at
from launch import serving
from launch.serving import Address, introduction
from run.directory import read_recipe
from support.errors import CRASHED, DONE, WRONG_INPUT, UserError
from tests.commands.running import Command
from tests.inference import conftest
from tests.inference.conftest import write_untrained
from tests.inference.test_chat import TEMPLATE

Called = Callable[..., str]
untrained = conftest.run


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Called:
    """Calls the command and gives the one line that it fails with."""

    def call(path: Path, port: int, *flags: str, status: int = WRONG_INPUT) -> str:
        monkeypatch.setattr("sys.argv", ["serve", "--run", str(path), "--port", str(port), *flags])
        with pytest.raises(SystemExit) as ended:
            command.main()
        out, error = capfd.readouterr()
        assert (ended.value.code, out, error.count("\n")) == (status, "", 1) and error.startswith("error: "), error
        return error

    return call


@pytest.fixture
def port() -> int:
    """A port that nobody has."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def with_template(run: Path) -> Path:
    """Give a run's tokeniser a chat template, and export the run."""
    tokeniser = export.load_tokeniser(run)
    tokeniser.chat_template = TEMPLATE
    tokenisers.save(tokeniser, run / "tokeniser")
    export.export(run, run / "export")
    return run / "export"


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> str:
    """What the server answers."""
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    method, text = ("POST", json.dumps(body)) if body else ("GET", None)
    server.request(method, path, text, {"Content-Type": "application/json"})
    answer = server.getresponse()
    found = answer.read().decode()
    server.close()
    assert answer.status == http.client.OK, found
    return found


def test_a_server_lists_the_model_completes_and_streams_a_chat(tmp_path: Path, port: int) -> None:
    run = tmp_path / "a@b"  # transformers takes what is behind an @ for a revision
    write_untrained(run, "seq_length=64")
    with_template(run)
    server = Command(
        tmp_path, "commands", "serve", "--run", str(run), "--port", str(port), "--", "--default-seed", "1", fresh=True
    )
    server.wait_until(lambda: "\ncurl" in server.out.read_text())
    (curl,) = [line for line in server.out.read_text().splitlines() if line.startswith("curl")]
    (model,) = json.loads(ask(port, "/v1/models"))["data"]
    assert model["id"] == "gpt_tiny"
    words = {"model": "gpt_tiny", "prompt": "the cat", "max_tokens": 8, "temperature": 0}
    (choice,) = json.loads(ask(port, "/v1/completions", words))["choices"]
    (greedy,) = _generated(run, "the cat")
    assert choice["text"] and greedy.startswith("the cat" + choice["text"])
    drawn = [ask(port, "/v1/completions", words | {"temperature": 1, "seed": seed}) for seed in (1, 1, 2)]
    first, again, other = (json.loads(each)["choices"][0]["text"] for each in drawn)
    assert first == again not in (other, choice["text"])
    said = {"temperature": 0, "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8, "stream": True}
    chunks = [json.loads(line[6:]) for line in ask(port, "/v1/chat/completions", said).splitlines() if line]
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    (greedy,) = _generated(run, "<user>the cat<|endoftext|><assistant>")
    assert len([delta for delta in deltas if delta]) > 1 and "".join(deltas).strip() in greedy
    _, url, *_, body = shlex.split(curl)  # what its user copies
    address = f"http://127.0.0.1:{port}"
    assert json.loads(ask(port, url.removeprefix(address), json.loads(body)))["choices"][0]["message"]["content"]
    os.kill(server.pid, signal.SIGINT)
    ended = server.finish()
    assert ended.returncode == DONE and "Traceback" not in ended.stderr and "Aborted" not in ended.stderr
    Address("127.0.0.1", port).check()  # nobody listens any more


def _generated(run: Path, prompt: str) -> list[str]:
    """What the run itself goes on with."""
    from inference.generate import generate
    from inference.sampling import Sampling

    found: list[str] = generate(run, prompt, Sampling(greedy=True, max_new_tokens=8), special=True)["samples"]
    return found


def test_a_port_in_use_names_a_free_one(untrained: Path, called: Called) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = called(untrained, port)
        free = int(error.partition("--port ")[2].split()[0])
        assert error.startswith(f"error: port {port} of 127.0.0.1 is in use; give another: --port {free} is free")
        Address("127.0.0.1", free).check()
    Address("127.0.0.1", port).check()


@pytest.mark.parametrize(("host", "port", "words"), [
    ("127.0.0.1", 0, "--port 0 must be from 1 to 65535"), ("127.0.0.1", 65536, "--port 65536 must be"),
    ("no such host", 80, "--host no such host: "), ("192.0.2.1", 8000, "192.0.2.1 port 8000: Cannot assign"),
])  # fmt: skip
def test_an_address_that_is_none(host: str, port: int, words: str, untrained: Path, called: Called) -> None:
    assert called(untrained, port, "--host", host).startswith(f"error: {words}")


def test_a_package_that_is_missing_is_named(
    untrained: Path, port: int, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert 'the package uvicorn; install with pip install "transformers[serving]==5.23.0"' in called(untrained, port)


def test_a_run_without_an_export_and_one_that_has_none(untrained: Path, port: int, called: Called) -> None:
    assert f"{untrained} has no export; make it with stagecraft export --run {untrained}" in called(untrained, port)
    recipe = read_recipe(untrained)
    masked = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, objective="masked"))
    (untrained / "recipe.json").write_text(json.dumps(dataclasses.asdict(masked)))
    assert "is a model of the masked objective, which has no GPT-2 form and cannot be served" in called(untrained, port)
    assert "not a run" in called(untrained / "x", port)


def test_a_folder_that_is_not_whole(untrained: Path, port: int, called: Called) -> None:
    folder = with_template(untrained)
    tokens, config = (folder / "tokenizer.json").read_text(), json.loads((folder / "config.json").read_text())
    (folder / "tokenizer.json").unlink()
    assert "tokeniser " in (error := called(folder, port)) and str(folder) in error
    (folder / "tokenizer.json").write_text(tokens)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "entries for a model of 100: they do not belong together" in called(untrained, port)
    (folder / "config.json").write_text("{")
    assert "cannot be read as a model" in called(untrained, port)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    assert "has no weights" in called(untrained, port)


def test_a_server_that_ends_by_itself_is_a_crash(
    untrained: Path, port: int, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export(untrained, untrained / "export")
    monkeypatch.setattr(serving.sys, "executable", "/bin/false")
    assert "transformers serve ended with status 1" in called(untrained, port, status=CRASHED)


def test_what_is_served_is_told(untrained: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    export.export(untrained, untrained / "export")
    served = look_at(untrained)
    assert served == Served(untrained / "export", "gpt_tiny", 32, False)
    url, no_chat, limit, curl = introduction(served, Address("0.0.0.0", port))
    assert f"http://127.0.0.1:{port}/v1" in url and "/v1/chat/completions does not" in no_chat
    assert "32 tokens" in limit and json.loads(shlex.split(curl)[-1])["max_tokens"] <= 16
    assert len(introduction(dataclasses.replace(served, template=True, context=None), Address("::1", port))) == 2


@pytest.mark.parametrize(("folder", "name"), [
    ("mine", "mine"), ("my model", "my-model"), ("a@main", "a-main"), ("--é..a--.b", "a-.b"), ("é", "model"),
])  # fmt: skip
def test_a_folder_is_known_by_its_name(folder: str, name: str, untrained: Path) -> None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.utils import validate_repo_id

    export.export(untrained, untrained.parent / folder)
    served = look_at(untrained.parent / folder)
    assert served.name == name
    validate_repo_id(served.name)
    with as_hub(served) as cache:
        (found,) = scan_cache_dir(cache).repos
        assert found.repo_id == name and list(found.refs) == ["main"]
    assert not cache.exists() and (served.folder / "config.json").exists()


@pytest.mark.parametrize("own", [False, True])
def test_tokens_are_drawn_unless_the_folder_says_otherwise(own: bool, untrained: Path) -> None:
    folder = with_template(untrained)
    settings = json.loads((folder / "generation_config.json").read_text()) | ({"do_sample": False} if own else {})
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with as_hub(look_at(folder)) as cache:
        (served,) = cache.glob("models--export/snapshots/*/generation_config.json")
        assert json.loads(served.read_text()) == settings | {"do_sample": not own}
    assert json.loads((folder / "generation_config.json").read_text()) == settings


def test_a_tensor_that_is_missing_is_named(untrained: Path) -> None:
    """transformers would draw it, and serve noise."""
    from safetensors.torch import load_file, save_file

    folder = untrained / "export"
    export.export(untrained, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the tensor transformer\.ln_f\.bias; copy it again"):
        look_at(untrained)
