"""What a user keeps secret is nowhere in what a run writes, prints and tells, also after a crash."""

import json
import signal
import sys
from pathlib import Path

import pytest

from recipes.registry import ROOT
from support.errors import DONE
from tests.commands.running import fail, succeed, write_corpus
from tests.faults.runs import Hurt

CANARY = "canary7f3a"
VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "STAGECRAFT_PASSWORD")
LISTENER = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


@pytest.mark.parametrize(
    "monitors",
    [("csv_monitor",), pytest.param(("csv_monitor", "tensorboard", "wandb"), marks=pytest.mark.faults)],
    ids=["csv", "all monitors"],
)
def test_no_byte_of_a_secret_is_written_printed_or_told(
    monitors: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{CANARY}-{name}")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:{CANARY}@proxy.invalid:1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = json.loads((ROOT / "ds_configs" / "zero1_fp32.json").read_text())
    config |= {name: {"enabled": True} for name in monitors}
    (tmp_path / "watched.json").write_text(json.dumps(config))
    hook = f"https://me:{CANARY}@hook.invalid/{CANARY}"
    notify = f'{sys.executable} -c "{LISTENER}" {tmp_path / "told"} {hook}'
    run = Hurt(
        tmp_path,
        "run",
        *("--notify", notify, "--deepspeed_config", str(tmp_path / "watched.json")),
        settings=("schedule.train_tokens=3840",),
    ).at_step(5)
    run.send(signal.SIGKILL, run.rank(1))
    done = run.command.finish()
    assert done.returncode == DONE, done.stderr
    assert run.events("fault") and (tmp_path / "told").read_text().count("\n") == 3
    printed = [done.stdout, done.stderr, succeed(tmp_path, "commands", "report", "--run", str(run.path))]
    printed.append(succeed(tmp_path, "commands", "runs", "--json"))
    printed.append(fail(tmp_path, "recipes.gpt_tiny", "--set", f"data.corpus={hook.rpartition('/')[0]}"))
    printed.append(fail(tmp_path, "recipes.gpt_tiny", "--notify", f"curl '{hook}"))
    assert not any(CANARY in text for text in printed), printed
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 20 and not [file for file in files if CANARY.encode() in file.read_bytes()]
    assert "--notify" in json.loads((run.path / "start.json").read_text())["command"]
