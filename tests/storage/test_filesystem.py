from pathlib import Path

import pytest

from storage.filesystem import identity, network_file_system

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/ann/scratch xfs rw 0 0
fs /srv/shared\\040data lustre rw 0 0
//pc/share /mnt/share cifs rw 0 0
tmpfs /mnt/hidden tmpfs rw 0 0
host:/x /mnt/hidden nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/a.db", None),
        ("/home/ann/a.db", "nfs4"),
        ("/home/ann/scratch/a.db", None),
        ("/homes/a.db", None),
        ("/srv/shared data/x/a.db", "lustre"),
        ("/mnt/share/a.db", "cifs"),
        ("/mnt/hidden/a.db", "nfs"),
    ],
)
def test_the_innermost_mount_decides(tmp_path: Path, path: str, kind: str | None) -> None:
    table = tmp_path / "mounts"
    table.write_text(MOUNTS)
    assert network_file_system(Path(path), table) == kind


def test_without_a_table_every_disk_is_local(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, tmp_path / "missing") is None


def test_another_file_has_another_identity(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert identity(path) is None
    path.touch()
    before = identity(path)
    assert before == identity(path)
    path.rename(tmp_path / "b")
    path.touch()
    assert identity(path) not in (None, before)
