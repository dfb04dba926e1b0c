"""What a gate that runs as a user of its own is given of the site's state: two files, and no more."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from oncofed_client.gate.node import CREDENTIALS
from oncofed_shared.errors import ConfigError, StorageError
from oncofed_shared.storage import write_whole

__all__ = ["clear_way", "hand_over"]

# Says which of the folders that it is given its user may not go through.
_CLOSED = "import os, sys; print(*(p for p in sys.argv[1:] if not os.access(p, os.X_OK)), sep='\\n', end='')"


def clear_way(user: str, *folders: Path, python: str = sys.executable) -> None:
    """See that the gate's user gets where it has to go, before anything is started; folders that are not there are made.

    Args:
        user: whom the gate runs as.
        folders: those in which the socket's folder and the gate's own lie.
        python: what the gate is started with.

    Raises:
        ConfigError: it cannot get there, or may not start Python; or there is no such user, or this process may not become it.
    """
    who = _user(user)
    for folder in folders:
        for each in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
            each.mkdir()
            # Whatever this process's umask is.
            each.chmod(0o755)
    words, rights = [python, "-c", _CLOSED, *map(str, folders)], {"user": who.pw_uid, "group": who.pw_gid}
    try:
        ended = subprocess.run(words, check=True, capture_output=True, text=True, extra_groups=[], cwd="/", **rights)  # type: ignore[call-overload] # noqa: S603 - our own words
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            f"--gate-user {user}: may not start {python}; install oncofed where every user may go, as below /opt"
        ) from None
    if ended.stdout:
        raise ConfigError(
            f"--gate-user {user}: cannot get into {', '.join(ended.stdout.splitlines())}; name places for it by --socket and "
            "--gate-home, as /run/oncofed/socket/daemon.sock and /var/lib/oncofed-gate"
        )


def hand_over(state: Path, *, home: Path, user: str) -> Path:
    """Copy the gate's credentials into its own folder, for it alone.

    Args:
        state: the site's.
        home: the gate's folder; made if it is not there, and given to the user.
        user: whom the gate runs as.

    Returns:
        The folder that has them now.

    Raises:
        ConfigError: there is no such user, or this process may not give files away.
        StorageError: the folder cannot be written.

    Guarantees:
        - Nothing of the state but the enrolment and the gate's own key is copied, and only the gate's user may read the copy.
    """
    who = _user(user)
    folder = home / "credentials"
    for name in CREDENTIALS:
        write_whole(folder / name, (state / name).read_bytes(), private=True)
    try:
        for path in (home, folder, *(folder / name for name in CREDENTIALS)):
            shutil.chown(path, who.pw_uid, who.pw_gid)
        home.chmod(0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{home}: cannot be given to {user} ({error.strerror})") from None
    return folder


def _user(name: str) -> pwd.struct_passwd:
    try:
        who = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"--gate-user {name}: there is no such user on this machine") from None
    if os.geteuid() != 0:
        raise ConfigError(
            f"--gate-user {name}: only root can start a process as another user; leave it out, or use systemd's units"
        )
    return who
