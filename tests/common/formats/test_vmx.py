"""The .vmx file: read, changed and written in its order, whatever its values hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmx import VmxDisk, VmxFile, VmxNic, parse_vmx

MIB = 1 << 20

WEB = """\
.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
# a comment
nvram = "web 01.nvram"
displayName = "web |22one|22 |7C 1"
guestOS = "debian11-64"
memSize = "4096"
numvcpus = "2"
firmware = "efi"
uuid.bios = "42 1c 3e 5a 00 11 22 33-44 55 66 77 88 99 aa bb"
vc.uuid = "50 1c 3e 5a 00 11 22 33-44 55 66 77 88 99 aa bc"
scsi0.virtualDev = "pvscsi"
scsi0.present = "TRUE"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.fileName = "web 01-000002.vmdk"
scsi0:0.present = "TRUE"
sata0:1.fileName = "/vmfs/volumes/5f0c-1/web 01/data.vmdk"
sata0:1.mode = "independent-persistent"
SATA0:1.PRESENT = "true"
scsi0:2.fileName = "gone.vmdk"
scsi0:2.present = "FALSE"
ide1:0.deviceType = "cdrom-image"
ide1:0.fileName = "/vmfs/volumes/iso/debian.iso"
ide1:0.present = "TRUE"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "00:50:56:9c:00:01"
ethernet1.present = "FALSE"
ctkEnabled = TRUE
annotation = "first line|0Asecond"
guestinfo.empty = ""
"""


def test_a_vms_parts_are_found() -> None:
    vmx = parse_vmx(WEB.encode())
    assert vmx.display_name == 'web "one" | 1'
    assert vmx.bios_uuid == "421c3e5a-0011-2233-4455-66778899aabb"
    assert vmx.instance_uuid == "501c3e5a-0011-2233-4455-66778899aabc"
    assert (vmx.nvram_name, vmx.firmware, vmx.hardware_version) == ("web 01.nvram", "efi", 19)
    assert (vmx.cpus, vmx.memory_bytes, vmx.guest_os) == (2, 4096 * MIB, "debian11-64")
    assert vmx.flag("CTKENABLED")
    assert vmx.get("annotation") == "first line\nsecond"
    assert vmx.disks() == [
        VmxDisk(
            bus="scsi", controller=0, unit=0, file_name="web 01-000002.vmdk", mode="persistent"
        ),
        VmxDisk(
            bus="sata",
            controller=0,
            unit=1,
            file_name="/vmfs/volumes/5f0c-1/web 01/data.vmdk",
            mode="independent-persistent",
        ),
    ]
    assert [disk.key for disk in vmx.disks()] == ["scsi0:0", "sata0:1"]
    assert vmx.nics() == [
        VmxNic(
            number=0,
            model="vmxnet3",
            network_name="VM Network",
            address_type="vpx",
            mac_address="00:50:56:9c:00:01",
            start_connected=True,
        )
    ]


def test_the_order_is_kept_when_it_is_changed() -> None:
    vmx = parse_vmx(WEB.encode())
    changed = vmx.with_values({"DISPLAYNAME": "new", "new.key": 'a"b'}).without("ethernet0")
    keys = [key for key, _value in changed.entries]
    assert keys == [key for key, _value in vmx.entries if not key.startswith("ethernet0")] + [
        "new.key"
    ]
    assert parse_vmx(changed.text().encode()) == changed
    assert changed.display_name == "new"
    assert changed.nics() == []
    assert vmx.display_name == 'web "one" | 1'


def test_without_takes_no_key_that_only_begins_alike() -> None:
    vmx = VmxFile((("scsi0:1.present", "TRUE"), ("scsi0:10.present", "TRUE"), ("scsi0:1", "x")))
    assert vmx.without("scsi0:1").entries == (("scsi0:10.present", "TRUE"),)


def test_the_text_is_golden() -> None:
    vmx = VmxFile((("displayName", 'a "b" | c\nd'), ("memSize", "4"), ("unit", "é")))
    assert vmx.text() == (
        '.encoding = "UTF-8"\ndisplayName = "a |22b|22 |7C c|0Ad"\nmemSize = "4"\nunit = "é"\n'
    )


def test_another_encoding_is_read() -> None:
    text = '.encoding = "windows-1252"\ndisplayName = "Müller"\n'
    assert parse_vmx(text.encode("cp1252")).display_name == "Müller"
    text = '.encoding = "Shift_JIS"\ndisplayName = "仮想"\n'
    assert parse_vmx(text.encode("shift_jis")).display_name == "仮想"


@given(
    st.lists(
        st.tuples(st.from_regex(r"[A-Za-z][A-Za-z0-9_.:]{0,20}", fullmatch=True), st.text()),
        min_size=1,
        max_size=20,
        unique_by=lambda pair: pair[0].lower(),
    )
)
def test_any_values_are_written_and_read_back(entries: list[tuple[str, str]]) -> None:
    try:
        "".join(value for _key, value in entries).encode()
    except UnicodeEncodeError:
        return
    vmx = VmxFile(((".encoding", "UTF-8"), *entries))
    assert parse_vmx(vmx.text().encode()) == vmx


EVIL = {
    "empty": b"",
    "only comments": b"# nothing\n",
    "no value": b"displayName\n",
    "value not ended": b'displayName = "a\n',
    "something after the value": b'displayName = "a" b\n',
    "two values": b'memSize = "4"\nMEMSIZE = "8"\n',
    "a NUL": b'displayName = "a\0b"\n',
    "not its encoding": b'displayName = "\xff"\n',
    "unknown encoding": b'.encoding = "utf-7"\ndisplayName = "a"\n',
    "an encoding of Python's": b'.encoding = "rot13"\ndisplayName = "a"\n',
    "escapes that are no text": b'displayName = "|FF"\n',
    "a key with a quote": b'a"b = "c"\n',
    "larger than 4 MiB": b"#" * (4 << 20) + b"\n",
    "a line above 512 KiB": b'guestinfo.x = "' + b"a" * (513 << 10) + b'"\n',
    "too many entries": b"".join(b'k%d = "1"\n' % number for number in range(20_001)),
    "a binary": bytes(range(1, 256)) * 10,
}


@pytest.mark.parametrize("case", EVIL)
def test_a_malformed_file_is_refused(case: str) -> None:
    with pytest.raises(FormatError):
        parse_vmx(EVIL[case])


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(FormatError, match="not a number"):
        _ = parse_vmx(b'memSize = "lots"\n').memory_bytes
    with pytest.raises(FormatError, match="not a key"):
        VmxFile(()).with_values({'a" = "b': "c"})


def test_a_long_line_of_blanks_takes_no_time() -> None:
    for line in (b"a " * 200_000, b"a" + b" " * 400_000 + b"b", b" =" * 200_000):
        with pytest.raises(FormatError):
            parse_vmx(b"x" + line)
