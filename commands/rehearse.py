"""`stagecraft rehearse 530b`: walk a recipe narrow on this machine."""

from commands import cli
from launch.rehearse import rehearse
from recipes.registry import load


def main() -> None:
    parser = cli.Parser("Train, kill, resume, compare and export a recipe, narrow, on this machine's processes.")
    parser.add_argument("recipe", help="for example gpt_530b, or 530b")
    parser.add_argument("--processes", type=int, default=8, help="at most so many ranks")
    parser.add_argument("--json", action="store_true", help="print what came out as JSON")
    args = parser.parse_args()

    def job() -> object:
        recipe = load(args.recipe)
        values = rehearse(recipe, args.processes, (lambda line: None) if args.json else print)
        if args.json:
            return values
        first, last = values["losses"][0], values["losses"][-1]
        print(
            f"{recipe.name}: loss {first:.3f} -> {last:.3f}; killed after step {values['killed_after_step']}, resumed "
            f"to the very numbers of the unbroken run; {values['seconds']:.0f} s"
        )
        for title, lines in (("the same as the real thing", values["same"]), ("narrowed", values["narrowed"])):
            print(f"{title}:")
            for line in lines:
                print(f"  {line}")
        return values

    cli.run_job(job, args.json)
