"""A plan for writing, on a terminal."""

from planner.values import DecodePlan, DecodeSpeed


def size(count: float) -> str:
    """Bytes with three digits, decimal: 1.06 TB, 8.60 MB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= 0.9995 * unit:
            value = count / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {name}"
    return f"{count / 1e3:.3g} kB"


def show_decode(plan: DecodePlan) -> None:
    """Print it."""
    cut, fewest, cheapest = plan["layout"], plan["smallest"], plan["cheapest"]
    stage, each = plan["stages"][plan["fullest_stage"]], plan["cache_bytes_per_token"]
    tokens = plan["prompt_tokens"] + plan["new_tokens"]
    where = "all ranks alike" if len(plan["stages"]) == 1 else f"pipeline stage {plan['fullest_stage'] + 1}"
    rows = {
        "GPUs": f"{cut['gpus']} {plan['gpu']} = tensor {cut['tensor']} x pipeline {cut['pipeline']}",
        "the fewest that hold it": f"{fewest['gpus']} = tensor {fewest['tensor']} x pipeline {fewest['pipeline']}",
        "weights": f"{size(plan['weight_bytes'])} in {plan['precision']}",
        "cache": f"{size(each)} a token, {size(each * tokens)} a text of {tokens:,} tokens",
        "the rank with least room": f"{where}, {stage['blocks']} blocks, of {size(plan['usable_bytes'])} usable",
        "  weights": size(stage["weight_bytes"]),
        "  driver and work space": size(stage["work_bytes"]),
        "  left for the cache": f"{size(stage['room_bytes'])}, {size(stage['cache_bytes_per_token'])} a token here",
        "texts at once": f"{plan['rows']:,} of {tokens:,} tokens ({plan['prompt_tokens']:,} of a prompt and "
                         f"{plan['new_tokens']:,} new), {plan['rows_of_context']:,} of the context's "
                         f"{plan['context']:,}",
    }  # fmt: skip
    if cut == fewest:
        rows.pop("the fewest that hold it")
    for speed in plan["speeds"]:
        rows |= _speed_rows(speed)
    rows["most a GPU"] = (
        f"{cheapest['gpus']} = tensor {cheapest['tensor']} x pipeline {cheapest['pipeline']}, {cheapest['rows']:,} "
        f"texts, {cheapest['tokens_per_second']:,.1f} tokens/s with their prompts"
    )
    rows["start it"] = f"{plan['command']} …"
    print(plan["recipe"])
    for name, value in rows.items():
        print(f"  {name:24s}  {value}")


def _speed_rows(speed: DecodeSpeed) -> dict[str, str]:
    count, token = speed["rows"], speed["token_seconds"]
    title = "one text" if count == 1 else f"{count:,} texts"
    largest = sorted(speed["token_parts"].items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{100 * seconds / token:.0f}% {name}" for name, seconds in largest)
    return {
        title: f"{speed['tokens_per_second']:,.1f} tokens/s: {1e3 * token:,.1f} ms a token ({parts})",
        f"  {title}, prompts": f"read in {speed['prompt_seconds']:,.2f} s; with them "
        f"{speed['tokens_per_second_with_prompts']:,.1f} tokens/s",
    }
