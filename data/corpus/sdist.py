"""Downloads the source archive of a package as it is: `python sdist.py bigbench==1.0.0`, into the working directory.

`pip download` would run the archive's setup.py to learn what it needs. Here pip finds the file, with the index and the
settings of its user, and fetches it; nothing of it is run.
"""

import sys


def main(requirement: str) -> None:
    """Fetch the archive. Whatever goes wrong is an exception, whose last line says what."""
    from pip._internal.commands import create_command

    name, _, version = requirement.partition("==")
    file = f"{name}-{version}.tar.gz"
    command = create_command("download")
    with command.main_context():
        options, _ = command.parse_args(["--no-cache-dir"])  # we keep it
        session = command.get_default_session(options)  # type: ignore[attr-defined]
        finder = command._build_package_finder(options, session)  # type: ignore[attr-defined]
        links = [each.link for each in finder.find_all_candidates(name) if each.link.filename == file]
        if not links:
            sys.exit(f"the package index has no {file}")
        as_it_is = {"Accept-Encoding": "identity"}  # else the archive may arrive unpacked
        with session.get(links[0].url_without_fragment, headers=as_it_is, stream=True) as answer:
            answer.raise_for_status()
            with open(file, "wb") as stream:
                for chunk in answer.iter_content(1 << 20):
                    stream.write(chunk)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (ImportError, AttributeError, TypeError) as error:  # its insides are nobody's promise
        sys.exit(f"pip is not there, or not as it was ({error}): python -m ensurepip --upgrade, pip install pip==26.3")
