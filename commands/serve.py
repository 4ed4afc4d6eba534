"""`stagecraft serve --run mine`: an OpenAI-compatible server of a run's export."""

from dataclasses import asdict

from commands import cli
from inference.named import HELP, model_of
from inference.served import check_packages, look_at
from launch.serving import Address, serve
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Serve a run's export, or the folder of any causal model, with transformers serve.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; 0.0.0.0 lets other machines ask")
    parser.add_argument("--port", type=int, default=8000, help="where to listen")
    parser.add_argument("--json", action="store_true", help="check all, print what would be served, and end")
    parser.add_argument("options", nargs="*", help="behind --: more options of transformers serve")
    args = parser.parse_args()

    def job() -> JsonObject:
        address = Address(args.host, args.port)
        address.check()
        check_packages()
        served = look_at(model_of(args.run))
        if not args.json:
            serve(served, address, args.options)
        return {**asdict(served), "folder": str(served.folder), "url": f"{address.url}/v1"}

    cli.run_job(job, args.json)
