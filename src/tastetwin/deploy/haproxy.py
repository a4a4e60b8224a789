"""HAProxy in front of two colours; who answers is an entry of a map, changed while it runs. It is never reloaded."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tastetwin.deploy.detached import Detached
from tastetwin.errors import StoreError
from tastetwin.store import Store

MAP: Final = "live.map"
FRONTS: Final = ("gateway", "app")
_SOCKET: Final = "haproxy.sock"
_SECONDS: Final = 10.0
"""For its start, and for one answer."""
_CONFIG: Final = """\
global
  stats socket unix@{socket} mode 600 level admin
  log stderr format raw daemon notice
defaults
  mode http
  log global
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  timeout http-request 10s
  retries 2
  retry-on conn-failure empty-response
  option httpchk GET /readyz
  default-server check inter 500ms fall 2 rise 1
"""
_FRONT: Final = """\
frontend {front}
  bind {host}:{port}
  use_backend %[str({front}),map({map})]
"""
_BACK: Final = """\
backend {section}
  server one 127.0.0.1:{port}
"""


@dataclass(frozen=True)
class Section:
    """How a backend of HAProxy stands."""

    up: bool
    busy: int
    """Requests under way or waiting."""


@dataclass(frozen=True)
class Haproxy:
    """One, in a folder."""

    folder: Path

    @property
    def process(self) -> Detached:
        """It."""
        return Detached(self.folder, "haproxy")

    def start(self, host: str, fronts: Mapping[str, int], sections: Mapping[str, int]) -> None:
        """Start it unless it runs; returns once it can be asked.

        Args:
            host: where it listens.
            fronts: the ports it listens on, by ``FRONTS``.
            sections: the ports that requests go to, by section.

        Raises:
            StoreError: DEPLOY-TOOL.
        """
        if self.process.pid() is not None:
            return
        program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            fix = "on Debian and Ubuntu: apt install haproxy"
            raise StoreError("DEPLOY-TOOL", place="haproxy", value="not found", rule="HAProxy 2.4 or newer", fix=fix)
        text = _CONFIG.format(socket=_SOCKET)
        text += "".join(_FRONT.format(front=name, host=host, port=port, map=MAP) for name, port in fronts.items())
        text += "".join(_BACK.format(section=name, port=port) for name, port in sections.items())
        Store(self.folder).write_bytes("haproxy.cfg", text.encode())
        (self.folder / MAP).touch()
        self.process.start([program, "-db", "-f", "haproxy.cfg"], os.environ)
        self._wait_until_asked()

    def _wait_until_asked(self) -> None:
        until = time.monotonic() + _SECONDS
        while True:
            try:
                if self.ask("show version").strip():  # one that finds its port taken says nothing, and ends
                    return
            except StoreError:
                if self.process.pid() is None or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def ask(self, command: str) -> str:
        """What the runtime API answers.

        Raises:
            StoreError: DEPLOY-TOOL where it does not.
        """
        try:
            return self._ask(command)
        except OSError as error:
            value, fix = error.strerror or str(error), f"see {self.process.log}"
            raise StoreError(
                "DEPLOY-TOOL", place="haproxy", value=value, rule="it runs and answers", fix=fix
            ) from error

    def _ask(self, command: str) -> str:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.settimeout(_SECONDS)
                asked.connect(f"/proc/self/fd/{folder}/{_SOCKET}")  # a socket's path has room for 107 bytes
                asked.sendall(command.encode() + b"\n")
                with asked.makefile() as said:
                    return said.read()
        finally:
            os.close(folder)

    def routes(self) -> dict[str, str]:
        """Front -> section that answers: as it runs, else as it would start."""
        if self.process.pid() is None:
            path = self.folder / MAP
            lines = path.read_text().splitlines() if path.exists() else []
            return dict(line.split() for line in lines)
        return dict(line.split()[1:] for line in self.ask(f"show map {MAP}").splitlines() if line)

    def route(self, routes: Mapping[str, str]) -> None:
        """Let these sections answer from the next request on, all fronts at once; and after a restart.

        Raises:
            StoreError: DEPLOY-TOOL.
        """
        lines = "".join(f"{front} {section}\n" for front, section in routes.items())
        Store(self.folder).write_bytes(MAP, lines.encode())
        version = self.ask(f"prepare map {MAP}").rpartition(":")[2].strip()
        said = [self.ask(f"add map @{version} {MAP} {front} {section}") for front, section in routes.items()]
        said.append(self.ask(f"commit map @{version} {MAP}"))
        if self.routes() != dict(routes):
            value = " ".join(" ".join(said).split())
            raise StoreError("DEPLOY-TOOL", place="haproxy", value=value, rule="takes the map's entries", fix="")

    def sections(self) -> dict[str, Section]:
        """How each stands."""
        rows = csv.DictReader(self.ask("show stat -1 4 -1").lstrip("# ").splitlines())
        return {
            row["pxname"]: Section(row["status"].startswith("UP"), int(row["scur"]) + int(row["qcur"])) for row in rows
        }
