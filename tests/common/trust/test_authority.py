"""What our certificates say, and who may hold which."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from holdfast_common.clock import SystemClock
from holdfast_common.errors import AuthenticationFailed, ConfigurationError, Refused
from holdfast_common.identity import new_ulid
from holdfast_common.trust.authority import create_authority, renewal_is_due
from holdfast_common.trust.controller_trust import (
    create_trust,
    load_credentials,
    load_trust,
    save_credentials,
)
from holdfast_common.trust.keys import certificate_request, new_key, public_key_of_request
from holdfast_common.trust.peer import Role, Subject, peer_of_pem, subject_of_uri

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("subject", "uri"),
    [
        (Subject(role=Role.CONTROLLER, name="0" * 26), f"holdfast://controller/{'0' * 26}"),
        (Subject(role=Role.PROXY, name="0" * 26), f"holdfast://agent/{'0' * 26}/proxy"),
        (Subject(role=Role.RESTORE, name="0" * 26), f"holdfast://agent/{'0' * 26}/restore"),
        (Subject(role=Role.ADMINISTRATOR, name="ann"), "holdfast://operator/ann/administrator"),
    ],
)
def test_a_subject_is_one_uri_and_back(subject: Subject, uri: str) -> None:
    assert subject.uri() == uri
    assert subject_of_uri(uri) == subject


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "holdfast://agent/x/proxy",
        f"holdfast://agent/{'0' * 26}/administrator",
        f"holdfast://agent/{'0' * 26}/proxy/",
        f"holdfast://agent/{'0' * 26}/proxy\n",
        "holdfast://operator/../administrator",
        "holdfast://operator/ann/local-operator",
        "holdfast://operator/ann/joiner",
        f"https://agent/{'0' * 26}/proxy",
    ],
)
def test_any_other_uri_names_nobody(uri: str) -> None:
    with pytest.raises(AuthenticationFailed):
        subject_of_uri(uri)


def test_a_name_cannot_smuggle_a_role_into_a_certificate() -> None:
    authority = create_authority(now=NOW)
    with pytest.raises(AuthenticationFailed):
        authority.issue_with_key(Subject(role=Role.PROXY, name="x/../../operator/a"), now=NOW)
    with pytest.raises(AuthenticationFailed):
        authority.issue_with_key(Subject(role=Role.LOCAL_OPERATOR, name="ann"), now=NOW)


def test_an_agent_lives_thirty_days_and_cannot_be_a_server() -> None:
    authority = create_authority(now=NOW)
    subject = Subject(role=Role.PROXY, name=new_ulid())
    pem, peer = authority.issue(new_key().public_key(), subject, now=NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose.dotted_string for purpose in purposes] == ["1.3.6.1.5.5.7.3.2"]
    assert peer == peer_of_pem(pem)
    assert peer.subject == subject
    assert peer.ends_at - NOW == dt.timedelta(days=30)
    assert not renewal_is_due(peer, now=NOW + dt.timedelta(days=19))
    assert renewal_is_due(peer, now=NOW + dt.timedelta(days=20, hours=1))


def test_a_certificate_never_outlives_its_authority() -> None:
    authority = create_authority(now=NOW)
    late = NOW + dt.timedelta(days=20 * 365 - 1)
    _, peer = authority.issue(
        new_key().public_key(), Subject(role=Role.PROXY, name=new_ulid()), now=late
    )
    assert peer.ends_at == NOW + dt.timedelta(days=20 * 365)


def test_only_a_signed_request_for_a_p256_key_is_taken() -> None:
    key = new_key()
    request = certificate_request(key)
    assert public_key_of_request(request) == key.public_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    other_curve = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    other_kind = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    forged = bytearray(x509.load_pem_x509_csr(request).public_bytes(Encoding.DER))
    forged[-3] ^= 1
    forged_pem = x509.load_der_x509_csr(bytes(forged)).public_bytes(Encoding.PEM)
    for bad in (
        other_curve.public_bytes(Encoding.PEM),
        other_kind.public_bytes(Encoding.PEM),
        forged_pem,
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * 1_000_000,
    ):
        with pytest.raises(Refused):
            public_key_of_request(bad)


def test_the_trust_folder_is_private_and_made_once(tmp_path: Path) -> None:
    trust = create_trust(tmp_path / "trust", SystemClock())
    assert (tmp_path / "trust").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "trust" / "authority.key").stat().st_mode & 0o777 == 0o600
    again = load_trust(tmp_path / "trust", SystemClock())
    assert again.authority.certificate_pem == trust.authority.certificate_pem
    assert again.controller_id == trust.controller_id
    with pytest.raises(Refused):
        create_trust(tmp_path / "trust", SystemClock())
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_trust(tmp_path / "other", SystemClock())


def test_key_and_certificates_lie_in_one_private_file(tmp_path: Path) -> None:
    authority = create_authority(now=NOW)
    credentials = authority.issue_with_key(
        Subject(role=Role.ADMINISTRATOR, name="administrator"), now=NOW
    )
    save_credentials(tmp_path / "a.pem", credentials)
    assert (tmp_path / "a.pem").stat().st_mode & 0o777 == 0o600
    assert load_credentials(tmp_path / "a.pem") == credentials
    assert "PRIVATE" not in repr(credentials)
    (tmp_path / "b.pem").write_bytes(credentials.certificate_pem)
    with pytest.raises(ConfigurationError):
        load_credentials(tmp_path / "b.pem")


def test_the_controller_renews_its_own_certificate(tmp_path: Path) -> None:
    class MovingClock(SystemClock):
        moment = NOW

        def now(self) -> dt.datetime:
            return self.moment

    clock = MovingClock()
    trust = create_trust(tmp_path / "trust", clock)
    first = trust.credentials()
    clock.moment = NOW + dt.timedelta(days=59)
    assert trust.credentials() is first
    clock.moment = NOW + dt.timedelta(days=61)
    second = trust.credentials()
    assert peer_of_pem(second.certificate_pem).ends_at > peer_of_pem(first.certificate_pem).ends_at
