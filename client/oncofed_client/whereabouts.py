"""Where a site's things lie: its data, into which nothing is written, and its state beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oncofed_client.prepare.cache import state_folder
from oncofed_client.settings import SiteSettings, has_settings, load_settings
from oncofed_shared.errors import ConfigError

__all__ = ["SitePlace", "site_place"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SitePlace:
    """A site's two folders.

    Attributes:
        data: with `site.toml`; None where only the state was named.
        state: keys, ledger, approvals, receipts, models.
    """

    data: Path | None
    state: Path

    def settings(self) -> SiteSettings:
        """What stands in `site.toml`.

        Raises:
            ConfigError: only the state was named, or the file is absent or wrong.
        """
        if self.data is None:
            raise ConfigError(
                f"{self.state}: has no site.toml, which this command needs; name the folder with the site's data, and "
                "--state if its state does not lie beside it"
            )
        return load_settings(self.data)


def site_place(folder: Path, state: Path | None = None) -> SitePlace:
    """The place of a site.

    Args:
        folder: the one with `site.toml`, or the state folder itself.
        state: where it does not lie beside the data.

    Raises:
        ConfigError: there is no such folder.
    """
    if has_settings(folder):
        return SitePlace(data=folder, state=state or state_folder(folder))
    if state is not None:
        return SitePlace(data=folder, state=state)
    try:
        there = folder.is_dir()
    except OSError:
        there = False
    if not there:
        raise ConfigError(f"{folder}: is not a folder that can be read; name the site's folder, or its state folder")
    return SitePlace(data=None, state=folder)
