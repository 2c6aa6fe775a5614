"""One gateway in place of all published ports: at which address and port, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sovereign_ai.config import GatewaySettings
from sovereign_ai.migrate.book import Book, Page
from sovereign_ai.migrate.draft import Fact
from sovereign_ai.migrate.service import Port, Service
from sovereign_ai.migrate.tree import Place


class Door(NamedTuple):
    """A published port behind which models were. `front`: a proxy that clients came through; `embeds`: only
    embedding models are behind it."""

    service: Service
    port: Port
    front: bool
    embeds: bool


class Gateway(NamedTuple):
    """`facts` are the keys of `gateway:`; none where the defaults stay."""

    facts: dict[str, Fact]
    port: int
    host: str

    @property
    def url(self) -> str:
        """Its address as a container sees it: there, 127.0.0.1 is the container itself."""
        everywhere = self.host in ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost")  # noqa: S104  compared
        host = "host.docker.internal" if everywhere else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


def door_of(book: Book, service: Service, target: int, *, front: bool, embeds: bool) -> Door | None:
    """The service's published port: that of its API where it publishes several."""
    published = [port for port in service.ports if port.port is not None]
    page = Page(book, service.name, service.place)
    for port in service.ports:
        if port.port is None:
            page.left(
                port.place, f"port {port.target} is published at one that Docker chose: not carried over"
            )
    if service.host_network and not published:
        page.assumed(service.place, f"it shares the host's network: its port is {target}")
        return Door(service, Port("", target, target, service.place), front, embeds)
    matching = [port for port in published if port.target == target]
    found = matching or (published if len(published) == 1 or front else [])
    return Door(service, found[0], front, embeds) if found else None


def gateway_of(book: Book, doors: Sequence[Door], top: Place) -> Gateway:
    """The port that clients know, so that they need a new key but no new address."""
    if not doors:
        default = GatewaySettings()
        what = f"no port of a model was published: the gateway has its default, {default.host}:{default.port}"
        book.assumed(top, "", what)
        return Gateway({}, default.port, default.host)
    chosen = _chosen(doors)
    page = Page(book, chosen.service.name, chosen.service.place)
    port = chosen.port.port or GatewaySettings().port
    page.carried(chosen.port.place, f"the gateway listens at its port, {port}{_why(chosen, doors)}")
    for door in doors:
        if door.port.port != port:
            what = f"port {door.port.port} is not served any more: all models are at the gateway's, {port}"
            book.changed(door.port.place, door.service.name, what, "change the clients that used it")
    facts = {"port": Fact(port, chosen.port.place)}
    host = _host(page, chosen.port)
    facts["host"] = Fact(host, chosen.port.place)
    return Gateway(facts, port, host)


def _chosen(doors: Sequence[Door]) -> Door:
    """A proxy's port before a model's, chat before embeddings, then the file's order."""
    return min(doors, key=lambda door: (not door.front, door.embeds))


def _why(chosen: Door, doors: Sequence[Door]) -> str:
    if len(doors) == 1:
        return ""
    if chosen.front:
        return ": clients came through it"
    same = sum(door.embeds == chosen.embeds for door in doors)
    what = "embeddings" if chosen.embeds else "chat"
    return f": of {len(doors)} ports the {'first' if same > 1 else 'one'} for {what}"


def _host(page: Page, port: Port) -> str:
    if port.host in ("", "0.0.0.0", "::"):  # noqa: S104  compared, not bound
        what = "the gateway listens on every address of the machine, as the published port did"
        page.assumed(port.place, what, "write `host: 127.0.0.1` to serve this machine alone")
        return port.host or "0.0.0.0"  # noqa: S104  what the old stack did
    page.carried(port.place, f"the gateway listens on {port.host}")
    return port.host
