"""What a preflight found, on a terminal."""

from launch.preflight.asked import Values

MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "skipped": "-"}


def show(values: Values) -> None:
    """Print the checks, the findings with their remedies, and the speeds."""
    print(f"{values['recipe']} on {values['world_size']:,} ranks, {values['hosts']:,} hosts, {values['run_dir']}")
    for check in values["checks"]:
        print(f"  {MARKS[check['state']]:4s}  {check['name']:24s}  {check['seen']}")
    if values["speeds"]:
        print(f"  {'traffic':16s} {'groups':>7s} {'ranks':>6s} {'GB/s':>9s} {'slowest':>9s} {'planned':>9s} {'µs':>9s}")
    for speed in values["speeds"]:
        plan = speed["planned_gb_per_second"]
        print(
            f"  {speed['axis']:16s} {speed['groups']:7,} {speed['ranks']:6,} {speed['gb_per_second']:9.3g} "
            f"{speed['slowest_gb_per_second']:9.3g} {'-' if plan is None else f'{plan:.3g}':>9s} "
            f"{speed['microseconds']:9,.0f}"
        )
    for kind, spoils in (("error", True), ("warning", False)):
        for check in values["checks"]:
            for finding in check["findings"]:
                if finding["spoils"] == spoils:
                    print(f"{kind}: {check['name']}: {finding['line']}")
    print(f"{'ready' if values['ok'] else 'not ready'}, after {values['seconds']:.1f} s")
