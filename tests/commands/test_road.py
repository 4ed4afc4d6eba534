"""The whole road with the real launcher: prepare, train, stop, kill, resume, evaluate, generate, export."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from launch.local import free_port
from recipes.registry import ROOT
from run import events, record
from run.metrics import read_metrics
from support.errors import CRASHED, STOPPED, WEIGHTS_LOST
from tests.commands.documented import check
from tests.commands.running import Command, fail, metrics, run, small, succeed, write_corpus
from tests.patience import ended
from tests.training.test_monitors import messages

STEPS = 20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("road")
    write_corpus(home / "corpus.jsonl")
    return home


@pytest.fixture(scope="module")
def unbroken(home: Path) -> Path:
    """A run to the end of its budget, never stopped."""
    arguments = [*small(home / "corpus.jsonl"), "--run-dir", str(home / "unbroken")]
    out = succeed(home, "recipes.gpt_tiny", *arguments, fresh=True)
    assert f"step     20/{STEPS}" in out and "bits per byte" in out
    return home / "unbroken"


def test_a_run_keeps_all_that_made_it(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    assert names == {
        *("recipe.json", "ds_config.json", "ds_config.resolved.json", "data.json", "tokeniser"),
        *("run.json", "start.json", "starts.jsonl", "status.json"),
        *("metrics.jsonl", "events.jsonl", "checkpoints", "report.json", "loss.png", ".lock", "logs"),
    }
    (start,) = [json.loads(line) for line in (unbroken / "starts.jsonl").read_text().splitlines()]
    assert start["world_size"] == 2 and start["versions"]["deepspeed"] and start["commit"]
    assert (unbroken / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in sorted((unbroken / "checkpoints").iterdir())] == ["step-00000018", "step-00000020"]


def test_a_run_learns_and_logs(unbroken: Path) -> None:
    lines = metrics(unbroken)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["consumed_samples"] for line in lines] == [8 * step for step in range(1, STEPS + 1)]
    wanted = {
        "step",
        "consumed_samples",
        "tokens",
        "loss",
        "grad_norm",
        "lr",
        "loss_scale",
        "skipped",
        "samples_by_part",
    }
    assert all(wanted <= set(line) and math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["tokens"] == 8 * 32 * STEPS and lines[-1]["samples_by_part"] == [8 * STEPS]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 15, 20]
    # Two of twenty steps are warmup: half the peak rate after the first, the peak after the second.
    assert [line["lr"] for line in lines[:2]] == pytest.approx([1.5e-3, 3e-3])
    assert lines[-1]["lr"] == 0  # the cosine ends there


def test_a_run_measures_time_and_memory(unbroken: Path) -> None:
    *lines, last = read_metrics(unbroken / "metrics.jsonl")
    assert all(before["time"] + line["seconds"] <= line["time"] + 0.01 for before, line in pairwise(lines))
    assert all(0 <= line["data_seconds"] < line["seconds"] and line["mfu"] is None for line in lines)
    assert all(len(line["memory_bytes"]) == 2 and min(line["memory_bytes"]) > 2**24 for line in lines)
    assert [line["step"] for line in lines if line.get("evaluate_seconds", 0) > 0] == [5, 10, 15, 20]
    waited = [event["waited"] for event in events.read(unbroken) if event["event"] == "saved"]
    assert sum(line.get("save_seconds", 0) for line in (*lines, last)) == pytest.approx(sum(waited))
    assert last["step"] == STEPS and last["evaluate_seconds"] > 0 and "loss" not in last
    report = json.loads((unbroken / "report.json").read_text())
    assert last["final_validation_loss"] == report["validation_loss"]


def test_a_run_notes_what_happened(unbroken: Path) -> None:
    noted = [event for event in events.read(unbroken) if event["event"] in ("phase", "training", "saved")]
    phases = [event["phase"] for event in noted if event["event"] == "phase"]
    assert [phase for phase in phases if phase in ("engine", "load")] == ["engine", "load"]
    (begin,) = [event for event in noted if event["event"] == "training"]
    assert (begin["step"], begin["last_step"]) == (0, STEPS)
    saved = {event["step"]: event for event in noted if event["event"] == "saved"}
    assert list(saved) == [3, 6, 9, 12, 15, 18, 20] and all(event["seconds"] > 0 for event in saved.values())
    newest = Path(saved[STEPS]["path"])
    assert sum(file.stat().st_size for file in newest.iterdir()) == saved[STEPS]["bytes"] > 12 * 30_000


def test_a_stopped_and_resumed_run_has_the_same_numbers(home: Path, unbroken: Path) -> None:
    path = str(home / "stopped")
    succeed(home, "recipes.gpt_tiny", *small(home / "corpus.jsonl"), "--run-dir", path, "--max-steps", "7")
    assert len(metrics(Path(path))) == 7
    check("pretrain", json.loads(succeed(home, "recipes.gpt_tiny", "--resume", "--run-dir", path, "--json")))
    ours, theirs = metrics(Path(path)), metrics(unbroken)
    ours[6].pop("validation_loss")  # the end of the first part was evaluated
    assert ours == theirs
    for line in (ours, theirs):
        assert line[-1]["step"] == STEPS


def test_a_killed_run_resumes_to_the_same_numbers_and_curves(home: Path, unbroken: Path) -> None:
    path, config = home / "killed", json.loads((ROOT / "ds_configs" / "zero1_fp32.json").read_text())
    config |= {name: {"enabled": True} for name in ("csv_monitor", "tensorboard", "wandb")}
    (home / "watched.json").write_text(json.dumps(config))
    flags = ("--deepspeed_config", str(home / "watched.json"), "--run-dir", str(path), "--restarts", "0")
    training = Command(home, "recipes.gpt_tiny", *small(home / "corpus.jsonl"), *flags)
    log = path / "metrics.jsonl"
    training.wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 8)
    (runner,) = psutil.Process(training.pid).children()
    (launcher,) = runner.children()
    ranks = [rank.pid for rank in launcher.children()]
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    done = training.finish()
    assert done.returncode == CRASHED and "go on with --resume" in done.stderr
    assert json.loads((path / "status.json").read_text())["status"] == CRASHED
    assert all(map(ended, ranks))
    succeed(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(path))
    assert metrics(path) == metrics(unbroken)
    assert curves(path) == [list(range(1, STEPS + 1))] * 3


def curves(path: Path) -> list[list[int]]:
    """The steps that CSV, TensorBoard and wandb have of a run; wandb has them in one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    header, *rows = (path / "csv_monitor" / "train_loss.csv").read_text().split()
    assert header == "step,loss"
    board = EventAccumulator(str(path / "tensorboard"))
    board.Reload()
    files = sorted((path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    assert len(files) == 2 and len({file.name for file in files}) == 1
    sent = [message.history.step.num for file in files for message in messages(file) if message.HasField("history")]
    return [[int(row.split(",")[0]) for row in rows], [event.step for event in board.Scalars("train/loss")], sent]


def never_saved(path: Path) -> None:
    """Make a run one that never saved."""
    shutil.rmtree(path / "checkpoints")
    for name, mark in (("events.jsonl", '"event": "saved"'), ("metrics.jsonl", '"save_seconds"')):
        lines = (path / name).read_text().splitlines(keepends=True)
        assert any(mark in line for line in lines)
        (path / name).write_text("".join(line for line in lines if mark not in line))


def test_a_run_that_never_saved_begins_again_aloud_and_one_that_did_does_not(home: Path, unbroken: Path) -> None:
    path = home / "unsaved"
    shutil.copytree(unbroken, path)
    who = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(who | {"id": "f" * 16}))
    foreign = fail(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(path))
    assert f"step-000000{STEPS}: it belongs to another run: its run is {who['id']}, not ffff" in foreign
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.rename(checkpoint.with_name(checkpoint.name + ".partial"))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    lost = fail(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(path))
    assert f"{path} has saved and {path}/checkpoints holds no checkpoint" in lost
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    never_saved(path)
    said = succeed(home, "recipes.gpt_tiny", "--resume", "auto", "--run-dir", str(path))
    assert "nothing was saved before: the run begins again with its first step" in said
    assert metrics(path) == metrics(unbroken)


def test_a_branch_goes_on_as_its_parent_would(home: Path, unbroken: Path) -> None:
    """Its parent stays as it is. Where the branch has no checkpoint of its own, it begins with its parent's again."""
    before = {file: file.stat().st_mtime_ns for file in unbroken.rglob("*")}
    path = home / "branch"
    flags = ("--from", f"{unbroken}@18", "--name", "twig", "--run-dir", str(path))
    assert f"branches off {unbroken} after step 18" in succeed(home, "recipes.gpt_tiny", *flags)
    assert metrics(path) == metrics(unbroken)[18:]
    never_saved(path)
    succeed(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(path))
    assert metrics(path) == metrics(unbroken)[18:]
    known = record.read(path)
    assert known and known.name == "twig" and known.parent and known.parent.step == 18 and not known.parent.changes
    assert {file: file.stat().st_mtime_ns for file in unbroken.rglob("*")} == before


def test_an_interrupted_run_saves_where_it_is(home: Path, unbroken: Path) -> None:
    path = home / "interrupted"
    arguments = [*small(home / "corpus.jsonl"), "intervals.save_every=1000", "--run-dir", str(path)]
    training = Command(home, "recipes.gpt_tiny", *arguments)
    training.wait_until((path / "starts.jsonl").exists)  # the ranks are there and build the engine
    os.kill(training.pid, signal.SIGINT)
    stopped = training.finish()
    assert "and saved; go on with --resume" in stopped.stderr and "Traceback" not in stopped.stderr
    assert stopped.returncode == STOPPED == json.loads((path / "status.json").read_text())["status"]
    assert [event["signal"] for event in events.read(path) if event["event"] == "stop"] == ["SIGTERM"]
    done = len(metrics(path))
    assert done < STEPS and (path / "checkpoints" / f"step-{done:08d}").exists()
    succeed(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(path))
    assert metrics(path)[-1]["loss"] == metrics(unbroken)[-1]["loss"]


@pytest.mark.parametrize("launcher", [
    "deepspeed.launcher.runner --num_gpus 1 --master_port PORT --module recipes.gpt_tiny",
    f"deepspeed.launcher.runner --num_gpus 1 --master_port PORT {ROOT}/recipes/gpt_tiny.py --deepspeed",
    "torch.distributed.run --nproc-per-node 1 --master-port PORT -m recipes.gpt_tiny",
], ids=["deepspeed module", "deepspeed path", "torchrun"])  # fmt: skip
def test_other_launchers_run_a_recipe_by_itself(launcher: str, home: Path, unbroken: Path, tmp_path: Path) -> None:
    """Without our front end: one process, ZeRO stage 3, the same data and weights as two processes with stage 1."""
    path = tmp_path / "direct"
    arguments = [*small(home / "corpus.jsonl"), "--max-steps", "3"]
    flags = ["--run-dir", str(path), "--deepspeed_config", "ds_configs/zero3_fp32.json", "model.dropout=0"]
    arguments += ["--set", flags.pop(), *flags]
    launched = launcher.replace("PORT", str(free_port())).split()
    out = succeed(home, *launched, *arguments)  # rank 0 tells what no parent of ours tells
    assert out.index(f"run: {path}") < out.index("step      1/3") < out.index("step      3/3") < out.index("saved")
    assert "bits per byte" in out and out.count("step      2/3") == 1
    happened = [line["event"] for line in events.read(path)]
    assert happened[:3] == ["start", "phase", "phase"] and happened[-1] == "end"
    assert json.loads((path / "starts.jsonl").read_text())["world_size"] == 1
    assert len(metrics(path)) == 3


def test_evaluate_repeats_the_report(home: Path, unbroken: Path) -> None:
    report = json.loads(succeed(home, "commands", "report", "--run", str(unbroken), "--json"))
    values = json.loads(succeed(home, "commands", "evaluate", "--run", str(unbroken), "--json"))
    # The same weights; only the order of sums over a batch differs.
    assert values["loss"] == pytest.approx(report["validation_loss"], abs=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    (part,) = json.loads((unbroken / "data.json").read_text())["parts"]
    held_out = part["validation"]
    bits = values["loss"] * held_out["tokens"] / math.log(2) / held_out["bytes"]
    assert values["bits_per_byte"] == pytest.approx(bits)
    assert report["bits_per_byte"] == pytest.approx(bits, abs=1e-3)
    assert values["tokens"] == held_out["tokens"]


def test_the_export_loads_with_transformers_alone_and_writes_the_same_text(home: Path, unbroken: Path) -> None:
    folder = home / "exported"
    succeed(home, "commands", "export", "--run", str(unbroken), "--out", str(folder))
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"tokeniser = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        "ids = tokeniser('the king', return_tensors='pt')\n"
        "out = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=tokeniser.eos_token_id)\n"
        "assert model.config.vocab_size == len(tokeniser) and tokeniser.model_max_length == 32\n"
        "assert not {'deepspeed', 'model', 'recipes'} & set(sys.modules)\n"
        "print(tokeniser.decode(out[0], skip_special_tokens=True), end='')"
    )
    theirs = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert theirs.returncode == 0, theirs.stderr
    flags = ("--prompt", "the king", "--greedy", "--max-new-tokens", "12", "--json")
    for source in (unbroken, folder):
        ours = json.loads(succeed(home, "commands", "generate", "--run", str(source), *flags))
        assert ours["samples"] == [theirs.stdout]
    assert len(theirs.stdout) > len("the king")


def test_generate_samples_by_seed_from_flag_file_and_pipe(home: Path, unbroken: Path) -> None:
    (home / "prompt.txt").write_text("the king")
    flags = ("commands", "generate", "--run", str(unbroken), "--max-new-tokens", "8", "--samples", "2", "--json")
    by_flag = json.loads(succeed(home, *flags, "--prompt", "the king"))["samples"]
    by_file = json.loads(succeed(home, *flags, "--file", str(home / "prompt.txt")))["samples"]
    by_pipe = json.loads(succeed(home, *flags, stdin="the king"))["samples"]
    assert by_flag == by_file == by_pipe and by_flag[0] != by_flag[1]
    streamed = succeed(home, *flags[:-1], "--prompt", "the king")
    assert all(sample in streamed for sample in by_flag)
    longer = (
        "commands",
        "generate",
        "--run",
        str(unbroken),
        "--prompt",
        "the king",
        "--max-new-tokens",
        "64",
        "--json",
    )
    (text,) = json.loads(succeed(home, *longer))["samples"]  # the context has 32 tokens
    assert text.startswith(by_flag[0].rstrip("\ufffd"))


def test_an_edited_json_is_obeyed_kept_and_reported(home: Path) -> None:
    config = json.loads((ROOT / "ds_configs" / "zero2_fp16.json").read_text())
    config["optimizer"]["params"]["lr"] = 5e-4
    config["gradient_clipping"] = 0.25
    config |= {name: {"enabled": True} for name in ("csv_monitor", "tensorboard", "wandb")}
    (home / "mine.json").write_text(json.dumps(config))
    path = home / "edited"
    flags = ("--deepspeed_config", str(home / "mine.json"), "--run-dir", str(path), "--max-steps", "2")
    out = succeed(home, "recipes.gpt_tiny", *small(home / "corpus.jsonl"), *flags)
    assert "deviates from the recipe: optimizer.params.lr is 0.0005 (recipe: 0.003)" in out
    assert "fp16, ZeRO stage 2" in out
    assert [line["lr"] for line in metrics(path)] == pytest.approx([2.5e-4, 5e-4])
    assert metrics(path)[0]["loss_scale"] == 65536
    assert json.loads((path / "starts.jsonl").read_text())["deviations"]
    assert json.loads((path / "ds_config.resolved.json").read_text())["gradient_clipping"] == 0.25
    losses = (path / "csv_monitor" / "train_loss.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in losses[1:]] == pytest.approx([m["loss"] for m in metrics(path)])
    last = (path / "csv_monitor" / "train_final_validation_loss.csv").read_text().split()
    report = json.loads((path / "report.json").read_text())
    assert last[0] == "step,final_validation_loss" and last[1] == f"2,{report['validation_loss']}"
    assert "wandb: no account is configured, logging offline; send it with wandb sync" in out
    assert list((path / "tensorboard").glob("events*")) and list((path / "wandb").glob("offline-run*"))


def test_prepared_data_that_changed_is_noticed_on_resume(home: Path, unbroken: Path) -> None:
    path = home / "changed"
    shutil.copytree(unbroken, path)
    described = json.loads((path / "data.json").read_text())
    described["parts"][0]["train"]["sha256"] = "0" * 64
    (path / "data.json").write_text(json.dumps(described))
    assert "changed since the run began" in fail(home, "recipes.gpt_tiny", "--resume", "--run-dir", str(path))


def test_bad_input_to_an_existing_run(home: Path, unbroken: Path, tmp_path: Path) -> None:
    here = ("--run-dir", str(unbroken))
    corpus = small(home / "corpus.jsonl")
    assert "already holds a run; add --resume" in fail(home, "recipes.gpt_tiny", *corpus, *here)
    other = fail(home, "recipes.gpt_tiny", "--resume", *here, "--set", "model.num_layers=3")
    assert "was started with model.num_layers 2, not 3" in other
    changed = fail(home, "recipes.gpt_tiny", "--resume", *here, "--set", "optimizer.lr=1e-4")
    assert "would change optimizer.lr 0.003 -> 0.0001; leave that out, add --allow-change" in changed
    assert "is a run of gpt_tiny, not of gpt_125m" in fail(home, "recipes.gpt_125m", "--resume", *here)
    assert "was started with seed 1234" in fail(home, "recipes.gpt_tiny", "--resume", *here, "--seed", "1")
    long = fail(home, "commands", "generate", "--run", str(unbroken), "--prompt", "king " * 99)
    assert "the model's context is 32" in long
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    taken = fail(home, "commands", "export", "--run", str(unbroken), "--out", str(tmp_path / "full"))
    assert "exists and is not an export" in taken and (tmp_path / "full" / "thesis.tex").read_text() == "mine"


def test_bad_input_leaves_nothing_behind(home: Path) -> None:
    missing = str(home / "missing.txt")
    empty, latin = home / "empty.txt", home / "latin.txt"
    empty.touch()
    latin.write_bytes("Küss die Hand".encode("latin1") * 100)
    typo = home / "typo.json"
    typo.write_text('{"zero_optimization": {"stag": 1}}')
    ok = small(home / "corpus.jsonl")
    cases = {
        ("recipes.gpt_tiny", "--set", f"data.corpus={missing}"): "does not exist",
        ("recipes.gpt_tiny", "--set", f"data.corpus={empty}"): "is empty",
        ("recipes.gpt_tiny", "--set", f"data.corpus={latin}"): "is not UTF-8 at byte 1",
        ("recipes.gpt_tiny", "--set", "data.tokeniser=gpt2"): "50257 entries but the model has room for 4096",
        ("recipes.gpt_tiny", "--set", "batch.global_batch=30"): "nearest global batches",
        ("recipes.gpt_tiny", "--set", "model.heads=3"): "there is no field model.heads",
        ("recipes.gpt_tiny", "--deepspeed_config", str(typo)): "did you mean stage",
        ("recipes.gpt_tiny", "--deepspeed_config", "ds_configs/zero1_bf61.json"): "did you mean",
        ("recipes.gpt_tiny", "--max-steps", "0"): "--max-steps is 0",
        ("recipes.gpt_tiny", "--max-steps", "many"): "--max-steps",
        ("recipes.gpt_tiny", "--no-such-flag"): "--no-such-flag",
        ("recipes.gpt_tiny", "--resume", "--run-dir", str(home / "nowhere")): "is not a run directory",
        ("recipes.gpt_tiny", "--processes", "3", *ok): "does not divide",
        ("recipes.gpt_tiny", "--run-dir", str(empty), *ok): "is a file",
        ("commands", "plan", "gpt_435m"): "did you mean gpt_345m",
        ("commands", "plan", "tiny", "--world-size", "0"): "--world-size is 0",
        ("commands", "prepare", "tinny"): "did you mean gpt_tiny",
        ("commands", "evaluate", "--run", str(home)): "is not a run directory",
        ("commands", "generate", "--run", str(home), "--prompt", "x"): "is not a run directory",
        ("commands", "generate", "--temperature", "0"): "--temperature must be from 0.000001 to 1,000,000",
        ("commands", "generate", "--top-p", "1.5"): "--top-p must be in (0, 1]",
        ("commands", "report", "--run", str(home)): "is not a run directory",
    }
    before = sorted(str(p) for p in (home / "runs").rglob("*") if not p.name.endswith(".lock"))
    for arguments, words in cases.items():
        assert words in fail(home, *arguments), arguments
    assert sorted(str(p) for p in (home / "runs").rglob("*") if not p.name.endswith(".lock")) == before


def test_a_laptop_that_starts_530b_is_shown_its_plan(home: Path) -> None:
    done = run(home, "recipes.gpt_530b", fresh=True)
    assert done.returncode == 2 and "2,240 ranks = tensor 8 x pipeline 35" in done.stdout
    assert done.stderr.startswith("error: gpt_530b needs at least 280 ranks") and done.stderr.count("\n") == 1
    assert "make rehearse-530b" in done.stderr


def test_a_loss_that_is_lost_stops_the_run(home: Path) -> None:
    path = home / "lost"
    config = json.loads((ROOT / "ds_configs" / "zero1_fp32.json").read_text()) | {"gradient_clipping": 0.0}
    (home / "wild.json").write_text(json.dumps(config))
    flags = ("--deepspeed_config", str(home / "wild.json"), "--run-dir", str(path))
    done = run(home, "recipes.gpt_tiny", *small(home / "corpus.jsonl"), "optimizer.lr=1e30", *flags)
    assert done.returncode == WEIGHTS_LOST and "Traceback" not in done.stderr
    assert "the weights are lost; lower optimizer.lr" in done.stderr
