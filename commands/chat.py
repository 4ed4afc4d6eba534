"""`stagecraft chat --run mine`: a conversation with a run."""

from commands import cli, sampling_flags
from inference.chat import Conversation
from inference.generate import load, told
from inference.named import HELP, model_of
from inference.talk import Talk
from run import checkpoints
from support.errors import UserError
from support.json_object import JsonObject


def main() -> None:
    parser = cli.Parser("Talk with a run, or with the folder of any causal model. Piped in, each line is a message.")
    parser.add_argument("--run", help=HELP)
    parser.add_argument("--checkpoint", metavar="STEP", help=checkpoints.HELP)
    parser.add_argument("--system", default="", metavar="TEXT", help="what stands before the first message")
    sampling_flags.add(parser)
    parser.add_argument("--json", action="store_true", help="print the turns as JSON in the end")
    args = parser.parse_args()

    def job() -> JsonObject:
        sampling, loading = sampling_flags.sampling(args), sampling_flags.loading(args)
        if sampling.samples > 1 or args.best_of is not None:
            raise UserError("a message gets one answer; leave --samples and --best-of out")
        if loading.ranks > 1:
            raise UserError("one rank talks; leave --tensor and --pipeline out")
        path = model_of(args.run)
        writer, checkpoint = load(path, loading)
        conversation = Conversation(writer, sampling, args.system)
        talk = Talk(conversation, quiet=args.json)
        talk.welcome(f"{path} after step {checkpoint.step:,}" if checkpoint else str(path))
        talk.run()
        return {"template": conversation.template, "turns": talk.turns, **told(checkpoint)}

    cli.run_job(job, args.json)
