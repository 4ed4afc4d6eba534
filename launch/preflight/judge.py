"""Rank 0's part of a preflight: it hears all ranks, compares, and decides what comes next."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

from launch.preflight import compare, speeds, told
from launch.preflight.asked import Asked, Values, shown
from launch.preflight.meeting import AbsentError
from launch.preflight.node import Node, Storage
from launch.preflight.timing import Timing
from launch.preflight.told import Told
from launch.preflight.traffic import groups_of
from planner import placement
from planner.finding import Check, Finding, few
from planner.memory import CONTEXT_BYTES
from planner.planning import plan_memory, plan_time
from planner.resolve import data_degree
from planner.saving import CHECKPOINT_BYTES, saving
from planner.timing import Machine
from planner.work import Work, step_of
from run.directory import Run, read_data, runs_root
from support.errors import UserError
from support.json_object import JsonObject
from training.alike import different, machine_of, skewed, skews, unseen
from training.facts import Facts
from training.shared import leave_token

SETTINGS = ("recipe", "DeepSpeed JSON")
NEEDED = ("torch", "NCCL", "Stagecraft's sources", *SETTINGS)  # to be alike, or collectives may hang
MOST_BYTES, LEAST_BYTES = 256 * 2**20, 2**20  # that a machine writes
MOST_FOLDERS = 32  # of prepared data that are looked for


class Judge:
    """What is known so far. Only rank 0 has something to say."""

    def __init__(self, asked: Asked, world: int, master: str) -> None:
        self.asked, self.world, self.master, self.began = asked, world, master, time.monotonic()
        self.checks: list[Check] = []
        self.speeds: list[speeds.Speed] = []
        self.missing: list[int] = []
        self.hosts: list[str] = []
        self.nodes: list[Node] = []
        self.timings: list[Timing] = []
        self.data: list[str] = []
        self.token, self.failed = "", ""
        self.run: Run | None = None
        self.step: Work | None = None
        self.machine: Machine | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing spoils the run."""
        return all(check.state != "fail" for check in self.checks)

    def values(self) -> Values:
        """All of it."""
        return {
            "recipe": self.asked.recipe.name,
            "run_dir": str(self.asked.folder),
            "world_size": self.world,
            "hosts": len(set(self.hosts)),
            "seconds": round(time.monotonic() - self.began, 2),
            "ok": self.ok,
            "checks": shown(self.checks),
            "speeds": self.speeds,
            "absent": self.missing,
        }

    def absent(self, error: AbsentError) -> None:
        """Ranks did not answer."""
        self.missing = error.ranks
        self.checks.append(
            Check("ranks", f"{len(error.ranks):,} of {self.world:,} are missing", (Finding(str(error)),))
        )

    def facts(self, values: list[Any]) -> JsonObject:
        """All ranks are there, and this is what each knows; returns what they need for the next stages."""
        everyone = [told.read(rank, value) for rank, value in enumerate(values)]
        known = [each.facts for each in everyone]
        self.hosts = [each.host for each in known]
        count = Counter(self.hosts)
        self.nodes = [replace(each.node, ranks=count[each.facts.host]) for each in everyone if each.node]
        self.checks.append(Check("ranks", f"{self.world:,} on {few(list(dict.fromkeys(self.hosts)))}"))
        self._versions(known)
        self._settings(everyone)
        per_node = self.asked.gpus_per_node
        self.checks.append(compare.gpus(self.nodes, self.asked.gpu or self.asked.recipe.cluster.gpu, per_node))
        if self.run and self.step:
            peak = plan_memory(self.step, None)["peak_bytes"]
            peak -= 0.0 if any(node.gpus.boards for node in self.nodes) else CONTEXT_BYTES  # that a GPU's driver takes
            self.checks.append(compare.memory(self.nodes, peak, _offloaded(self.step)))
            placed = placement.findings(self.run.recipe.layout, self.hosts, self.step, self.machine)
            axes = "tensor and Ulysses ranks share a node" if not placed else "see below"
            self.checks.append(Check("places", axes, tuple(placed)))
        self.checks.append(compare.names(self.nodes, self.master))
        self._leave_token()
        alike = {name: [each.alike.get(name) for each in known] for name in NEEDED}
        collectives = all(len(set(values)) == 1 for values in alike.values()) and self.run is not None
        return {
            "hosts": self.hosts,
            "token": self.token,
            "failed": self.failed,
            "size": self._write_bytes(),
            "data": self.data,
            "collectives": collectives,
        }

    def _versions(self, known: list[Facts]) -> None:
        plain = [Facts(f.rank, f.host, {k: v for k, v in f.alike.items() if k not in SETTINGS}) for f in known]
        seen = ", ".join(f"{name} {known[0].alike[name]}" for name in ("python", "torch", "deepspeed"))
        self.checks.append(Check("versions", seen, tuple(different(plain))))

    def _settings(self, everyone: list[Told]) -> None:
        """Recipe and JSON; with them what the planner says."""
        broken = [each for each in everyone if each.problem]
        only = [Facts(e.facts.rank, e.facts.host, {k: v for k, v in e.facts.alike.items() if k in SETTINGS})
                for e in everyone if not e.problem]  # fmt: skip
        found = different(only) if only else []
        if broken:
            found.append(Finding(f"rank {broken[0].facts.rank} on {broken[0].facts.host}: {broken[0].problem}"))
        else:
            self.run = self.asked.run(self.world)
            recipe = self.run.recipe
            self.step = step_of(recipe, self.run.engine.json, data_degree(recipe, self.world))
            boards = [board for node in self.nodes for board in node.gpus.boards]
            self.machine = machine_of(self.hosts, boards[0].name) if boards else None
            self.data = self._prepared()
        self.checks.append(Check("recipe and JSON", self.asked.recipe.name, tuple(found)))

    def _prepared(self) -> list[str]:
        """The folders of prepared data: the run's own, or else all that there are."""
        try:
            parts = read_data(self.asked.folder)["parts"]
            return [str(part["folder"]) for part in parts]
        except UserError:
            folder = self.asked.folder.absolute()  # of all runs, or of one: runs/<recipe>/<time>
            roots = dict.fromkeys([runs_root().absolute(), folder, folder.parent.parent])
            found = [file.parent for root in roots for file in sorted((root / "data").glob("*/manifest.json"))]
            return [str(each) for each in found][:MOST_FOLDERS]

    def _leave_token(self) -> None:
        try:
            self.asked.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.failed = f"it cannot be made: {error.strerror}"
            return
        self.token, self.failed = leave_token(self.asked.folder)

    def _write_bytes(self) -> int:
        """What each machine writes: its part of a checkpoint, within limits."""
        part = self._checkpoint_bytes() / max(1, len(set(self.hosts)))
        return int(min(MOST_BYTES, max(LEAST_BYTES, part)))

    def _checkpoint_bytes(self) -> float:
        return CHECKPOINT_BYTES * self.asked.recipe.trained_parameters

    def storage(self, values: list[Any]) -> JsonObject:
        """What the first rank of each machine found of the run's folder."""
        first = [rank for rank in range(self.world) if values[rank]["found"]]
        found = [Storage(**values[rank]["found"]) for rank in first]
        hosts = [self.hosts[rank] for rank in first]
        problems = [each.problem for each in found]
        shared = tuple(unseen(self.asked.folder, hosts, problems))
        seen = "see below" if shared else f"{self.asked.folder} is seen and written everywhere"
        self.checks.append(Check("storage", seen, shared))
        self.checks.append(compare.saves(self.asked.folder, found, self._checkpoint_bytes(), self._interval))
        self.checks.append(compare.data(hosts, found, len(self.data)))
        return {}

    def _interval(self, storage_gb_s: float) -> float:
        """Seconds between two saves; 0 where they are counted in steps, and nobody knows how long one takes."""
        if self.run is None or self.step is None:
            return 0.0
        recipe, step = self.run.recipe, 0.0
        if self.machine is not None:
            step = plan_time(recipe, self.step, self.machine)["step_seconds"]
        return saving(recipe, self.world, step, storage_gb_s).interval_seconds

    def stage(self, name: str, values: list[Any]) -> JsonObject:
        """How something went that all did together."""
        broken = [(rank, value["problem"]) for rank, value in enumerate(values) if value.get("problem")]
        if broken:
            rank, problem = broken[0]
            where = f"rank{'s' * (len(broken) > 1)} {few([rank for rank, _ in broken])}, first on {self.hosts[rank]}"
            line = f"{name}: it failed on {where}: {problem}; look at names, firewall and interfaces between them"
            self.checks.append(Check("traffic", "see below", (Finding(line),)))
        elif name == "clocks":
            clocks = skews(self.hosts, [value["clock"] for value in values])
            worst = max(clocks, key=lambda each: abs(each.seconds))
            seen = f"{abs(worst.seconds):.3f} s apart at most (± {worst.error:.3f} s)"
            self.checks.append(Check("clocks", seen if clocks[1:] else "one machine", tuple(skewed(clocks))))
        else:
            self.timings += [Timing(**value["timing"]) for value in values if value.get("timing")]
        return {"ok": not broken}

    def traffic(self) -> None:
        """All axes are measured."""
        assert self.run is not None
        layout = self.run.recipe.layout
        groups = groups_of(layout, self.hosts)
        self.speeds = speeds.speeds(groups, self.timings, layout, self.machine)
        gpus = any(node.gpus.boards for node in self.nodes)
        self.checks.append(speeds.check(groups, self.timings, self.hosts, self.speeds, gpus))


def _offloaded(step: Work) -> float:
    """Bytes that a rank keeps on its host where the optimiser is there."""
    if not bool(step.offload_optimizer) or bool(step.nvme):
        return 0.0
    return float(step.parameters(0) * (8.0 + step.master_bytes + step.gradient_bytes) / step.copies)
