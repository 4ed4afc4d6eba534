"""What a plan, a search and a proof say: the values that `--json` shows, each with its type."""

from typing import Literal, NotRequired, TypedDict


class StageMemory(TypedDict):
    """A rank of one pipeline stage."""

    blocks: int
    parameters: int
    bytes: dict[str, float]
    total_bytes: float


class MemoryPlan(TypedDict):
    """All stages and the fullest one; the last three where the GPU is known."""

    stages: list[StageMemory]
    worst_stage: int
    peak_bytes: float
    largest_part: str
    usable_bytes: NotRequired[float]
    headroom_bytes: NotRequired[float]
    fits: NotRequired[bool]


class TimePlan(TypedDict):
    """A step, and what follows from it for the run."""

    step_seconds: float
    step_parts: dict[str, float]
    tokens_per_second: float
    model_tflops_per_gpu: float
    hardware_tflops_per_gpu: float
    mfu: float
    run_seconds: float
    days: float
    gpu_hours: float
    megawatt_hours: float


class SavingPlan(TypedDict):
    """How often a run saves and what that costs. Saves in steps have minutes only where a step's time is known."""

    storage_gb_s: float
    write_seconds: float
    pause_seconds: float
    hours_between_failures: float
    save_minutes: NotRequired[float]
    save_share: NotRequired[float]
    lost_share: NotRequired[float]
    save_steps: NotRequired[float]


class BuiltRank(TypedDict):
    """The first rank of a pipeline stage, built and planned."""

    rank: int
    identical_ranks: int
    parameters: int
    planned_parameters: int
    weight_bytes: int
    planned_weight_bytes: int


class Proof(TypedDict):
    """What was built, as `--json` shows it."""

    world_size: int
    built: int
    seconds: float
    ranks: list[BuiltRank]


class Plan(TypedDict):
    """A plan as `--json` shows it."""

    recipe: str
    status: str
    parameters: int
    flops_per_token: float
    tokens_per_step: int
    steps: int
    train_tokens: int
    train_flops: float
    world_size: int
    global_batch: int
    micro_batch: int
    gradient_accumulation: int
    precision: str
    zero_stage: int
    layout: dict[str, int]
    data_degree: int
    memory: MemoryPlan
    checkpoint_bytes: int
    deviations: list[str]
    saving: NotRequired[SavingPlan]
    gpu: NotRequired[str]
    time: NotRequired[TimePlan]
    price: NotRequired[float]
    cost: NotRequired[float]
    remedy: NotRequired[str]
    smallest_cluster_nodes: NotRequired[int | None]
    verified: NotRequired[Proof]


class Candidate(TypedDict):
    """One layout as `--json` shows it."""

    tp: int
    pp: int
    dp: int
    micro_batch: int
    zero_stage: int
    recompute_every: int
    step_seconds: float
    model_tflops_per_gpu: float
    peak_bytes: float
    fits: bool


class Own(Candidate):
    """The recipe's own layout beside the best one that fits."""

    runs: Literal[True]
    faster_layouts: int
    slower_than_best: float
    parts_more_than_best: dict[str, float]


class Refused(TypedDict):
    """Why the recipe's own layout does not run on this cluster."""

    runs: Literal[False]
    reason: str


class Found(TypedDict):
    """What a search found, as `--json` shows it."""

    recipe: str
    gpu: str
    world_size: int
    candidates: int
    fitting: int
    seconds: float
    layouts: list[Candidate]
    own: Own | Refused


class DecodeStage(TypedDict):
    """A rank of one pipeline stage, in bytes; `room_bytes` is what the caches of all rows may take."""

    blocks: int
    parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    work_bytes: float
    room_bytes: float


class Cut(TypedDict):
    """A layout and its GPUs."""

    tensor: int
    pipeline: int
    gpus: int


class Cheapest(Cut):
    """The layout that writes most a GPU, its texts at once and their tokens a second."""

    rows: int
    tokens_per_second: float


class DecodeSpeed(TypedDict):
    """Writing with so many rows: seconds until the prompts are read, of a token of each row, and where they go."""

    rows: int
    prompt_seconds: float
    token_seconds: float
    token_parts: dict[str, float]
    tokens_per_second: float
    tokens_per_second_with_prompts: float


class DecodePlan(TypedDict):
    """A plan for writing as `--json` shows it."""

    recipe: str
    parameters: int
    gpu: str
    precision: str
    layout: Cut
    smallest: Cut
    cheapest: Cheapest
    prompt_tokens: int
    new_tokens: int
    context: int
    weight_bytes: int
    cache_bytes_per_token: int
    usable_bytes: float
    stages: list[DecodeStage]
    fullest_stage: int
    rows: int
    rows_of_context: int
    speeds: list[DecodeSpeed]
    command: str
