"""What a site said no to, and why, in that site's own folder."""

from __future__ import annotations

from oncofed_client.site import Site
from oncofed_shared.storage import write_whole

__all__ = ["keep_journal"]


def keep_journal(site: Site) -> None:
    """Move a site's journal to the end of the file in its state folder."""
    if site.state is None or not site.journal:
        return
    path = site.state / "journal.txt"
    before = path.read_bytes() if path.exists() else b""
    text = "".join(f"{line}\n" for line in site.journal)
    write_whole(path, before + text.encode(), private=True)
    site.journal.clear()
