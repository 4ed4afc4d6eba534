from support.secrets import command_to_keep, without_passwords


def test_an_address_loses_its_password_and_nothing_else() -> None:
    assert without_passwords("see https://me:s3cret@host.org/x?y=1, then") == "see https://me:***@host.org/x?y=1, then"
    assert without_passwords("s3://:key@bucket postgres://a:b@c:5432/d") == "s3://:***@bucket postgres://a:***@c:5432/d"
    for harmless in ("https://host:8080/a@b", "me@host:path", "step 4:5 @ 6", "https://me@host/"):
        assert without_passwords(harmless) == harmless


def test_a_command_is_kept_without_what_it_tells_a_listener() -> None:
    words = [
        "stagecraft",
        "pretrain",
        "tiny",
        "--notify",
        "curl -H 'Key: k' u",
        "--set",
        "a=ftp://m:p@h/",
        "--notify=k",
    ]
    kept = ["stagecraft", "pretrain", "tiny", "--notify", "***", "--set", "a=ftp://m:***@h/", "--notify=***"]
    assert command_to_keep(words) == kept
