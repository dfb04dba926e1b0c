"""What a gate that runs as a user of its own is given of the site's state: two files, and no more."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from oncofed_client.gate.node import CREDENTIALS
from oncofed_shared.errors import ConfigError, StorageError
from oncofed_shared.storage import write_whole

__all__ = ["hand_over"]


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
    try:
        who = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"--gate-user {user}: there is no such user on this machine") from None
    if os.geteuid() != 0:
        raise ConfigError(
            f"--gate-user {user}: only root can start a process as another user; leave it out, or use systemd's units"
        )
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
