"""`stagecraft status`: how a run is, wherever it runs."""

from commands import cli
from launch.clusters.runs import show, standing
from run.select import HELP, find, latest
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser(
        "Show how a run is: what its record says, and its scheduler's word where it was submitted to one."
    )
    parser.add_argument("--run", help=f"{HELP}, also where it has no step yet")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> JsonObject:
        value = standing(find(args.run) if args.run else latest())
        if not args.json:
            show(value)
        return value

    cli.run_job(job, args.json)
