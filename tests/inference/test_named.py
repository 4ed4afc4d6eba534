"""What `--run` names: a run, its checkpoint, a folder, or a model of a hub that is played on this machine."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from commands import generate as command
from data.tokens import tokenisers
from inference import export, generate
from inference.foreign import load_folder
from inference.named import at_step, model_of
from inference.sampling import Sampling
from tests.inference.conftest import WORDS

SHA = "0123456789" * 4
FEW = Sampling(max_new_tokens=3)


class Hub(BaseHTTPRequestHandler):
    """A hub of one model, some/model, with the files of `folder`; a file is asked for by HEAD before it is sent."""

    folder: Path
    sent: list[str]

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        content, status = b'{"error": "Repository Not Found"}', 404
        headers = {"X-Error-Code": "RepoNotFound"}
        if path.startswith("/api/models/some/model/revision/v9"):
            headers = {"X-Error-Code": "RevisionNotFound"}
        elif path.startswith("/api/models/some/model/revision/"):
            content, status = json.dumps({"id": "some/model", "sha": SHA}).encode(), 200
        elif path == f"/api/models/some/model/tree/{SHA}":
            files = [file for file in self.folder.rglob("*") if file.is_file()]
            listed = [{"type": "file", "path": str(f.relative_to(self.folder)), **self._facts(f)} for f in files]
            content, status = json.dumps(listed).encode(), 200
        elif path.startswith(f"/some/model/resolve/{SHA}/"):
            file = self.folder / path.removeprefix(f"/some/model/resolve/{SHA}/")
            content, status = file.read_bytes(), 200
            headers = {"X-Repo-Commit": SHA, "ETag": f'"{self._facts(file)["oid"]}"'}
            self.sent += [str(file.relative_to(self.folder))] if body else []
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _facts(self, file: Path) -> dict[str, object]:
        return {"size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest()}

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub with the export of a run, and an empty cache."""
    export.export(run, tmp_path / "exported")
    (tmp_path / "exported" / "pytorch_model.bin").write_bytes(b"the same again, pickled")
    (tmp_path / "exported" / "onnx").mkdir()
    (tmp_path / "exported" / "onnx" / "config.json").write_text("{}")
    played = type("Played", (Hub,), {"folder": tmp_path / "exported", "sent": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), played)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    yield played
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_got_once_and_serves_without_a_network(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_of("some/model")
    sent = sorted(hub.sent)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(sent) and sent == sorted(set(sent))
    assert not {"pytorch_model.bin", "onnx/config.json"} & set(sent)
    mine, theirs = (generate.generate(path, "the", FEW)["samples"] for path in (hub.folder, folder))
    assert mine == theirs
    hub.sent.clear()
    assert model_of("some/model@main") == folder and not hub.sent
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_of("some/model") == folder


def test_weights_may_be_pickled_where_there_are_no_others(hub: type[Hub]) -> None:
    (hub.folder / "model.safetensors").unlink()
    assert (model_of("some/model") / "pytorch_model.bin").exists()


def test_a_model_without_weights_is_one_line(hub: type[Hub]) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (hub.folder / name).unlink()
    with pytest.raises(ValueError, match=r"model some/model, .*, has no weights \(model"):
        model_of("some/model")


BAD = [
    ("some/other", "some/other is no run and no folder here, and the hub shows no such model; check the name"),
    ("some/model@v9", "model some/model of the hub has no revision v9; give another"),
    ("some..model/a--b", "some..model/a--b is no run and no folder here, and the hub shows no such model"),
    ("gpt2", "gpt2 is no run and no folder here, and the hub shows no such model"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_what_the_hub_does_not_give_is_one_line(hub: type[Hub], text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        model_of(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_out_of_reach_is_one_line(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("sys.argv", ["generate", "--run", "some/model", "--prompt", "a"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    error = capsys.readouterr().err
    words = "error: some/model is no run and no folder here, and the hub was not reached for it: "
    assert ended.value.code == 2 and error.startswith(words) and error.count("\n") == 1
    assert "give a run or a folder, or a cache that holds it by HF_HUB_CACHE" in error


def test_a_run_comes_before_the_hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert model_of("runs/gone") == Path("runs/gone")  # a run that is not there, and no model of the hub's user "runs"
    (tmp_path / "runs" / "gpt_tiny").mkdir(parents=True)
    run.rename(tmp_path / "runs" / "gpt_tiny" / "gpt2-mine")
    assert model_of("gpt2").name == "gpt2-mine"
    with pytest.raises(ValueError, match="'gpt3' is not a run directory"):
        model_of("gpt3")


def test_what_lies_in_a_run_is_found_by_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = run.parent / "runs" / "gpt_tiny" / "some-day"
    named.parent.mkdir(parents=True)
    named.symlink_to(run)
    (run / "export").mkdir()
    monkeypatch.setenv("STAGECRAFT_RUNS", str(run.parent / "runs"))
    assert model_of("some-day/export") == named / "export" and model_of("some-day") == named
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for other in ("some-day/none", "no-day/export"):
        with pytest.raises(ValueError, match=f"{other} is no run and no folder here, and the hub"):
            model_of(other)


def test_the_path_of_a_checkpoint_is_that_step_of_its_run(run: Path) -> None:
    path = run / "checkpoints" / "step-00000007"
    assert at_step(model_of(str(path)), None) == (run, "7") and at_step(run, "best") == (run, "best")
    values = generate.generate(path, "the", FEW)
    assert values["checkpoint"] == 7 and values["samples"] == generate.generate(run, "the", FEW)["samples"]
    with pytest.raises(ValueError, match="step-00000007 is a checkpoint already; leave --checkpoint best out"):
        at_step(path, "best")


def test_other_kinds_of_models_are_one_line(tmp_path: Path) -> None:
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), tmp_path)
    small = {"vocab_size": 300, "num_hidden_layers": 1, "num_layers": 1, "d_model": 8, "hidden_size": 8}
    heads = {"num_attention_heads": 1, "num_heads": 1, "intermediate_size": 8, "d_ff": 8, "d_kv": 8}
    for config, kind in ((BertConfig, BertForMaskedLM), (T5Config, T5ForConditionalGeneration)):
        kind(config(**small, **heads)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"holds no causal model but {kind.__name__}; give one that goes on"):
            load_folder(tmp_path)


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    config = {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="needs code of its own, which is not run here; take a model"):
        load_folder(tmp_path)
