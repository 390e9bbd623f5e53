"""Messages go to real receivers, by apprise, in a program of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from holdfast_common.logs import Secret
from holdfast_controller.decide.notices import Message, NoticeKind
from holdfast_controller.runs.apprise_sender import without_secrets
from holdfast_controller.runs.sending import Sent, send
from support.notification_receivers import (
    closed_port,
    http_receiver,
    silent_receiver,
    smtp_receiver,
)

MESSAGE = Message(kind=NoticeKind.DEBT, title="Holdfast: a debt", body="our snapshot of VM wéb <b>")


def sent(*urls: str, seconds_max: float = 60.0) -> list[Sent]:
    return send(MESSAGE, [Secret(url.encode()) for url in urls], seconds_max=seconds_max)


@pytest.mark.long
def test_a_message_goes_to_every_address_and_names_no_secret() -> None:
    with http_receiver(secret="s3cret-t0ken") as web, smtp_receiver() as mail:
        found = sent(web.url, mail.url)
        assert [each.error for each in found] == ["", ""]
        assert web.titles() == ["Holdfast: a debt"]
        assert web.bodies() == ["our snapshot of VM wéb <b>"]
        assert "Subject: Holdfast: a debt" in mail.taken[0]
        assert [each.name.split("://")[0] for each in found] == ["json", "mailto"]
        assert not any("s3cret" in each.name for each in found)


def test_each_address_that_does_not_take_it_is_told_with_its_reason_and_no_secret() -> None:
    with (
        http_receiver() as fine,
        smtp_receiver() as mail,
        http_receiver(secret="s3cret-t0ken") as refusing,
        smtp_receiver() as strict,
    ):
        refusing.status = strict.status = 500
        nobody = f"json://operator:s3cret-t0ken@127.0.0.1:{closed_port()}/"
        odd = "nosuch://s3cret-t0ken"
        found = sent(fine.url, refusing.url, nobody, odd, strict.url, mail.url)
        assert [not each.error for each in found] == [True, False, False, False, False, True]
        assert "500" in found[1].error
        assert "Subject: Holdfast: a debt" in mail.taken[0]
        assert found[3] == Sent(name="nosuch://***", error="not an address that apprise knows")
        assert "s3cret" not in repr(found)
        assert len(fine.taken) == 1


@pytest.mark.long
def test_a_service_that_never_answers_is_given_up_and_holds_up_no_other() -> None:
    with silent_receiver() as silent, http_receiver() as web:
        found = sent(silent.url, web.url, seconds_max=20.0)
        assert found[0].error == "no answer within 20 s"
        assert found[1].error == ""
        assert len(web.taken) == 1


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        (
            "cannot reach https://hooks.example.com/T000/B111/abcdefgh",
            "slack://T000/B111/abcdefgh",
            "cannot reach https://hooks.example.com/T000/B111/***",
        ),
        ("bad password hunter22", "json://me:hunter22@host/", "bad password ***"),
        ("no host example.org", "json://example.org/", "no host example.org"),
    ],
)
def test_errors_keep_no_part_of_an_address_that_may_be_secret(
    text: str, url: str, shown: str
) -> None:
    assert without_secrets(text, url) == shown


@pytest.mark.long
def test_neither_the_commands_nor_the_daemon_import_apprise_or_prometheus() -> None:
    program = (
        "import sys, holdfast_controller.main, holdfast_controller.service.daemon;"
        "print([name for name in ('apprise', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
