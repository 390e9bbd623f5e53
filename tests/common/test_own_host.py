from pathlib import Path

from holdfast_common.own_host import bios_uuid, mac_addresses


def test_only_cards_of_the_machine_tell_who_it_is(tmp_path: Path) -> None:
    for name, mac, device in (
        ("ens192", "00:50:56:AA:BB:01\n", True),
        ("docker0", "02:42:ac:11:00:01\n", False),
        ("lo", "00:00:00:00:00:00\n", False),
        ("broken", "00:00:00:00:00:00\n", True),
    ):
        card = tmp_path / name
        card.mkdir()
        (card / "address").write_text(mac)
        if device:
            (card / "device").mkdir()
    assert mac_addresses(tmp_path) == ("00:50:56:aa:bb:01",)


def test_a_host_that_tells_nothing_is_nobody(tmp_path: Path) -> None:
    assert mac_addresses(tmp_path / "none") == ()
    assert bios_uuid(tmp_path / "none") == ""


def test_the_bios_tells_its_uuid(tmp_path: Path) -> None:
    (tmp_path / "product_uuid").write_text("42150A0B-0000-0000-0000-00000000000C\n")
    assert bios_uuid(tmp_path / "product_uuid") == "42150a0b-0000-0000-0000-00000000000c"
