"""Makes a folder of a trained head for the Hugging Face hub, with a card, and uploads it."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, run_job
from flags import hyphenate


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Upload a trained head to the Hugging Face hub: weights, run.json, curves, and a model card.",
        epilog="Exit code: 0 all is well; 2 a mistake in the call, or the hub refused it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model-path", "-m", required=True, metavar="PATH", help="a checkpoint, or a run's folder")
    parser.add_argument("--weights", default=None, help="of the backbone (None = where the run found them)")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="of the model on the hub")
    parser.add_argument("--output-dir", type=Path, default=Path("hub_model"), metavar="DIR", help="where it is made")
    parser.add_argument("--data", default="own data", metavar="TEXT", help="what it was trained on, for the card")
    parser.add_argument("--licence", default=None, metavar="ID", help="of the head, as the hub names them (apache-2.0)")
    parser.add_argument("--private", action="store_true", help="only you can see it, where it is a new one")
    parser.add_argument("--dry-run", action="store_true", help="make the folder, and upload nothing")
    args = parser.parse_args(hyphenate(argv))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        parser.error(f"--repo {args.repo}: expected OWNER/NAME")
    return args


def push(args: argparse.Namespace) -> int:
    from export.card import write_folder  # --help should not wait for torch
    from released.model import load_model

    if args.output_dir.is_dir() and any(args.output_dir.glob("*.pth")):
        raise UserError(f"--output-dir {args.output_dir}: holds checkpoints, choose a folder of its own")
    segmenter = load_model(args.model_path, args.weights)
    for path in write_folder(segmenter, args.output_dir, args.repo, args.data, args.licence):
        print(f"  {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if args.dry_run:
        print(f"nothing was uploaded; try it: python demo/predict.py -m {args.output_dir} ...")
        return 0
    print(f"uploaded: {upload(args.output_dir, args.repo, args.private)}")
    return 0


def upload(folder: Path, repo: str, is_private: bool) -> str:
    """Return the address of the uploaded files. Raises UserError where the hub refuses it, or cannot be reached."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("huggingface_hub is not installed: pip install huggingface_hub, or pass --dry-run") from None
    from export.card import FILES

    api = HfApi()
    try:
        api.create_repo(repo, private=is_private, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo, allow_patterns=list(FILES)))
    except Exception as error:  # what the hub's client raises differs between its versions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--repo {repo}: could not be uploaded ({reason}); `hf auth login`, or a token in HF_TOKEN that may write "
            f"there. The folder {folder} is complete"
        ) from error


def main() -> int:
    args = parse_arguments(sys.argv[1:])
    return run_job(lambda: push(args))


if __name__ == "__main__":
    sys.exit(main())
