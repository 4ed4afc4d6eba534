"""A plan, and what a search found, on a terminal."""

from collections.abc import Iterable

from planner.values import Candidate, Found, Own, Plan, Refused, SavingPlan


def show(values: Plan) -> None:
    """Print a plan."""
    layout, held = values["layout"], values["memory"]
    worst = held["stages"][held["worst_stage"]]
    rows = {
        "status": values["status"],
        "parameters": f"{values['parameters']:,}",
        "model FLOPs a token": f"{values['flops_per_token'] / 1e6:,.1f} M",
        "tokens a step": f"{values['tokens_per_step']:,}",
        "steps": f"{values['steps']:,} for {values['train_tokens'] / 1e9:,.3g} B tokens",
        "model FLOPs of the run": f"{values['train_flops']:.2e}",
        "global batch": f"{values['global_batch']} = micro-batch {values['micro_batch']} x accumulation "
                        f"{values['gradient_accumulation']} x data degree {values['data_degree']}",
        "layout": f"{values['world_size']:,} ranks = tensor {layout['tp']} x pipeline {layout['pp']} "
                  f"x Ulysses {layout['ulysses']} x data {values['data_degree']}",
        "engine": f"{values['precision']}, ZeRO stage {values['zero_stage']}",
        "fullest rank": f"{held['peak_bytes'] / 1e9:,.1f} GB, {_stage(values)}; most of it {held['largest_part']}",
    }  # fmt: skip
    for name, size in worst["bytes"].items():
        if size >= 0.0005 * worst["total_bytes"]:
            rows[f"  {name}"] = f"{size / 1e9:10,.2f} GB"
    if "fits" in held:
        verdict = "fits" if held["fits"] else "DOES NOT FIT"
        rows["memory"] = (
            f"{verdict}: {held['usable_bytes'] / 1e9:,.1f} GB usable on {values['gpu']}, headroom "
            f"{held['headroom_bytes'] / 1e9:,.1f} GB"
        )
    rows["a checkpoint"] = f"{values['checkpoint_bytes'] / 1e9:,.3f} GB"
    rows |= _saving_rows(values["saving"])
    rows |= _time_rows(values)
    if "verified" in values:
        proof = values["verified"]
        rows["verified"] = (
            f"built all {proof['built']} distinct ranks of {proof['world_size']:,} in {proof['seconds']:.1f} s: each "
            "holds exactly the planned parameters and bytes of weights"
        )
    print(values["recipe"])
    for name, value in rows.items():
        print(f"  {name:24s}  {value}")
    for deviation in values["deviations"]:
        print(f"  deviates from the recipe: {deviation}")
    if "remedy" in values:
        print(f"  {values['remedy']}")


def _stage(values: Plan) -> str:
    held, stages = values["memory"], values["layout"]["pp"]
    worst = held["worst_stage"]
    if stages == 1:
        return f"all ranks alike, {held['stages'][0]['blocks']} blocks"
    why = "the most micro-batches in flight" if worst == 0 else "logits and loss" if worst == stages - 1 else "blocks"
    return f"pipeline stage {worst + 1} of {stages} ({held['stages'][worst]['blocks']} blocks, {why})"


def _saving_rows(saving: SavingPlan) -> dict[str, str]:
    rows = {
        "a save": f"{saving['write_seconds']:,.1f} s at {saving['storage_gb_s']:g} GB/s, beside training; a pause of "
        f"{saving['pause_seconds']:,.2f} s"
    }
    if "save_minutes" in saving:
        steps = f" = {saving['save_steps']:,.0f} steps" if "save_steps" in saving else ""
        rows["saved every"] = f"{saving['save_minutes']:,.0f} minutes{steps}"
        rows["saves and failures"] = (
            f"{100 * saving['save_share']:.1f}% of the time for pauses; {100 * saving['lost_share']:.1f}% for "
            f"work done again, with a failure every {saving['hours_between_failures']:,.0f} hours"
        )
    return rows


def _time_rows(values: Plan) -> dict[str, str]:
    if "time" not in values:
        return {"time": "not predicted: no GPU of the catalogue; give --gpu"}
    time = values["time"]
    rows = {"a step": f"{time['step_seconds']:,.3f} s, of which"}
    for name, seconds in time["step_parts"].items():
        if abs(seconds) >= 0.0005 * time["step_seconds"]:
            rows[f"  {name}"] = f"{seconds:10,.3f} s  {100 * seconds / time['step_seconds']:5.1f}%"
    rows["speed"] = (
        f"{time['tokens_per_second']:,.0f} tokens/s; {time['model_tflops_per_gpu']:,.1f} model TFLOP/s a GPU = "
        f"{100 * time['mfu']:.1f}% of peak ({time['hardware_tflops_per_gpu']:,.1f} with recomputation)"
    )
    rows["the run"] = (
        f"{time['days']:,.1f} days, {time['gpu_hours']:,.0f} GPU-hours, at most {time['megawatt_hours']:,.0f} MWh"
    )
    if "cost" in values:
        rows["cost"] = f"{values['cost']:,.0f} at {values['price']:g} a GPU-hour"
    return rows


def show_found(found: Found) -> None:
    """Print what a search found."""
    print(
        f"{found['recipe']} on {found['world_size']:,} {found['gpu']}: {found['candidates']:,} layouts, "
        f"{found['fitting']:,} fit, {found['seconds']:.2f} s"
    )
    print("tensor pipeline  data micro-batch recompute  ZeRO    step s TFLOP/s/GPU    GB/rank")
    for row in found["layouts"]:
        print(_words(row))
    for line in _why(found["own"]):
        print(line)


def _words(row: Candidate) -> str:
    every = row["recompute_every"]
    recompute = "none" if not every else "all" if every == 1 else f"1 of {every}"
    return (
        f"{row['tp']:6d} {row['pp']:8d} {row['dp']:5d} {row['micro_batch']:11d} {recompute:>9s} {row['zero_stage']:5d} "
        f"{row['step_seconds']:9.3f} {row['model_tflops_per_gpu']:11.1f} {row['peak_bytes'] / 1e9:10.1f}"
    )


def _why(own: Own | Refused) -> Iterable[str]:
    if own["runs"] is False:
        yield f"the recipe's own layout does not run here: {own['reason']}"
        return
    yield _words(own) + "  the recipe's own" + ("" if own["fits"] else ", which does not fit")
    ahead = own["faster_layouts"]
    if not ahead:
        yield "no layout that fits is faster than the recipe's own"
        return
    parts = sorted(own["parts_more_than_best"].items(), key=lambda item: -abs(item[1]))[:3]
    told = ", ".join(f"{name} {seconds:+.2f} s" for name, seconds in parts)
    yield (
        f"{ahead:,} layouts that fit are predicted faster; against the best the recipe's own takes "
        f"{100 * own['slower_than_best']:.1f}% longer: {told}"
    )
